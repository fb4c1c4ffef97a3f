"""A model whose steps would differ from full passes is refused by name; the others are accepted."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    FalconConfig,
    LlamaConfig,
    MistralConfig,
    OpenAIGPTConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedModel,
)

from ollm_rl.backbones.loading import context_length
from ollm_rl.backbones.output_head import OutputHead
from ollm_rl.decode import acceptance
from ollm_rl.decode.acceptance import check_decoding
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.errors import UsageError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.decode.test_engine import random_ids
from tests.tiny_models import CONTEXT, HIDDEN, VOCAB, greedy_generate, randomized, tiny_config, tiny_model

SWITCH = 24


def model_of(config: Any) -> PreTrainedModel:
    return randomized(AutoModelForCausalLM.from_config(config).eval(), seed=0)


def bart_family() -> Any:
    parts = {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
    encoder = {"encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
    return BartConfig(vocab_size=VOCAB, d_model=HIDDEN, max_position_embeddings=CONTEXT, **parts, **encoder)


def longrope() -> Any:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    settings = {**tiny_config("llama").to_dict(), "rope_parameters": None, "rope_scaling": rope}
    settings |= {"original_max_position_embeddings": SWITCH, "pad_token_id": 0}
    return Phi3Config(**{name: value for name, value in settings.items() if name not in ("model_type", "head_dim")})


def greedy(backbone: PreTrainedModel, prompts: list[list[int]], count: int) -> list[list[int]]:
    head, engine = OutputHead(backbone), DecodeEngine(backbone, len(prompts), max(map(len, prompts)) + count)
    with torch.no_grad():
        tokens = [head(engine.prefill(range(len(prompts)), prompts)).argmax(-1)]
        for _ in range(count - 1):
            tokens.append(head(engine.step(tokens[-1])).argmax(-1))
    return torch.stack(tokens, 1).tolist()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (bart_family(), "BartForCausalLM decodes other hidden states in steps than in one pass"),
        # Llama reads no window; the engine would hide tokens that the model sees.
        (LlamaConfig(**{**tiny_config("llama").to_dict(), "sliding_window": 8}), "LlamaForCausalLM decodes other"),
        (
            FalconConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=4, alibi=True),
            "FalconForCausalLM ",
        ),
        (
            OpenAIGPTConfig(vocab_size=VOCAB, n_embd=HIDDEN, n_layer=1, n_head=4, n_positions=CONTEXT),
            "OpenAIGPTLMHeadModel keeps no keys and values",
        ),
    ],
    ids=["bart", "unread window", "alibi", "no cache"],
)
def test_an_architecture_that_ignores_positions_masks_or_its_window_is_refused_by_name(
    config: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        DecodeEngine(model_of(config), 2, 16)
    assert "\n" not in str(refusal.value)


def test_a_head_with_layers_before_it_is_refused_by_name() -> None:
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    bert = model_of(BertConfig(vocab_size=VOCAB, is_decoder=True, **sizes))
    with pytest.raises(UsageError, match="BertLMHeadModel changes its logits"):
        OutputHead(bert)


def test_logits_that_are_scaled_by_little_are_refused_however_small_they_are() -> None:
    class Scaled(type(tiny_model("llama"))):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 0.9
            return output

    backbone = Scaled(tiny_config("llama")).eval()
    with torch.no_grad():
        backbone.lm_head.weight.mul_(1e-3)
    with pytest.raises(UsageError, match="Scaled changes its logits"):
        OutputHead(backbone)


def test_a_head_narrower_than_the_hidden_layers_gives_the_tokens_of_generate() -> None:
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    narrow = {"word_embed_proj_dim": 16, "max_position_embeddings": CONTEXT}
    backbone = model_of(OPTConfig(vocab_size=VOCAB, **sizes, **narrow, **ends, do_layer_norm_before=False))
    prompts = random_ids(5, 19, 11)
    assert greedy(backbone, prompts, 20) == [greedy_generate(backbone, prompt, 20) for prompt in prompts]
    model = OptionModel(backbone, OptionConfig(num_options=2, width=8))
    assert model.hidden_size == 16
    assert model.option_tokens(torch.zeros(3, 16)).shape == (3, 2)


def test_a_model_with_longrope_ends_at_the_switch_and_gives_the_tokens_of_generate_until_there() -> None:
    backbone = model_of(longrope())
    assert context_length(backbone) == SWITCH
    prompts = random_ids(3, 14, 9)
    assert greedy(backbone, prompts, SWITCH - 14) == [greedy_generate(backbone, each, SWITCH - 14) for each in prompts]
    with pytest.raises(UsageError, match=f"max_length={SWITCH + 1} is more than the backbone's context of {SWITCH}"):
        DecodeEngine(backbone, 2, SWITCH + 1)
    # Beyond it a text is read differently from its first token on.
    (ids,) = random_ids(SWITCH + 1)
    with torch.no_grad():
        whole = backbone.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, 5]
        part = backbone.model(input_ids=torch.tensor([ids[:SWITCH]]), use_cache=False).last_hidden_state[0, 5]
    assert (whole - part).abs().max() > 0.01


def test_a_window_longer_than_the_compared_rows_is_cut_for_the_comparison_only() -> None:
    backbone = model_of(MistralConfig(**{**tiny_config("mistral").to_dict(), "sliding_window": 40}))
    windows = []
    hook = backbone.base_model.register_forward_pre_hook(
        lambda module, args: windows.append(module.config.sliding_window)
    )
    check_decoding(backbone)
    hook.remove()
    assert set(windows) == {acceptance.WINDOW} and backbone.config.sliding_window == 40


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rounding_of_half_precision_is_accepted_and_bart_is_not(dtype: torch.dtype) -> None:
    check_decoding(tiny_model("qwen2").to(dtype))
    with pytest.raises(UsageError, match="BartForCausalLM decodes other"):
        check_decoding(model_of(bart_family()).to(dtype))


def test_a_model_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_model("llama")
    check_decoding(backbone)
    monkeypatch.setattr(acceptance, "decoding_error", lambda _: pytest.fail("compared again"))
    check_decoding(backbone)
    DecodeEngine(backbone, 2, 16)


def test_a_model_is_compared_in_three_passes_over_two_of_its_layers() -> None:
    backbone = model_of(LlamaConfig(**{**tiny_config("llama").to_dict(), "num_hidden_layers": 4, "layer_types": None}))
    passes: list[int] = []
    backbone.base_model.register_forward_pre_hook(lambda *_: passes.append(0))
    for layer in backbone.base_model.layers:
        layer.register_forward_pre_hook(lambda *_: passes.append(1))
    check_decoding(backbone)
    assert passes == [0, 1, 1] * 3


def test_a_model_that_reads_what_follows_is_refused() -> None:
    class Peeking(type(tiny_model("llama").base_model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(1, keepdim=True)
            return output

    backbone = tiny_model("llama")
    backbone.base_model.__class__ = Peeking
    with pytest.raises(UsageError, match="LlamaForCausalLM decodes other"):
        check_decoding(backbone)
