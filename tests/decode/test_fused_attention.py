"""Steps whose attention is one kernel per layer: what transformers computes, or not used at all.

Without CUDA the kernel's place is taken by `rotary_attention`.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GemmaConfig,
    GlmConfig,
    GraniteConfig,
    MixtralConfig,
    OlmoConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
)

from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.decode import acceptance, engine, fused_attention, lean_model, row_cache, step
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.named_attention import hands_over_cache
from ollm_rl.errors import RunWarning
from tests.decode import rotary_attention
from tests.decode.test_engine import random_ids
from tests.tiny_models import full_hidden_states, randomized, tiny_config

CONTEXT, SIZE = 200, 16  # tokens, head size

not_on_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="for the stand-in")


@pytest.fixture(autouse=True)
def kernel_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CUDA the engine does what it does there, with a kernel of torch's operations."""
    if torch.cuda.is_available():
        return
    monkeypatch.setattr(row_cache, "STACKED", ("cpu", "cuda"))
    monkeypatch.setattr(step, "reads_live_part", hands_over_cache)
    monkeypatch.setattr(fused_attention, "reads_live_part", hands_over_cache)
    use_kernel(rotary_attention.turn_and_attend, monkeypatch)


def use_kernel(kernel: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fused_attention, lean_model):
        monkeypatch.setattr(module, "turn_and_attend", kernel, raising=False)


def config_of(family: str, **settings: Any) -> Any:
    config = tiny_config(family)
    config.update({"head_dim": SIZE, "max_position_embeddings": CONTEXT, **settings})
    return config


def like_llama(kind: Callable[..., Any], **settings: Any) -> Any:
    """The config of another class with the sizes of a tiny llama."""
    sizes = config_of("llama").to_dict()
    return kind(**{name: sizes[name] for name in sizes if name not in ("model_type", "rope_parameters")} | settings)


def model_of(config: Any, attention: str | None = None) -> PreTrainedModel:
    backbone = randomized(AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval())
    return backbone.to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_(False)


def with_lora() -> PreTrainedModel:
    torch.manual_seed(0)
    backbone = TokenPolicy(model_of(config_of("llama")), rank=4).backbone
    with torch.no_grad():
        for name, weight in backbone.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    return backbone


def engine_of(
    backbone: PreTrainedModel, *, used: bool = True, lean: bool | None = None, num_slots: int = 4, **settings: Any
) -> DecodeEngine:
    """An engine whose steps are, or are not, computed with `FusedAttention`, and by a `LeanModel`."""
    made = DecodeEngine(backbone, num_slots, CONTEXT, **settings)
    assert bool(made._step._fused) == used
    assert lean is None or (made._step._lean is not None) == lean
    return made


def assert_steps(made: DecodeEngine, sequences: list[list[int]], tokens: tuple[int, ...] = (7, 8, 9)) -> None:
    """Append tokens to slots that hold these sequences; hidden states are those of one pass without a cache."""
    for token in tokens:
        found = made.step(torch.tensor([token + row for row in range(len(sequences))], device=made.device))
        for row, sequence in enumerate(sequences):
            sequence.append(token + row)
            expected = full_hidden_states(made.backbone, sequence)[-1]
            torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-3)


def assert_decodes(made: DecodeEngine) -> None:
    prompts = random_ids(100, 5, 1, 31)
    made.prefill(range(4), prompts)
    assert_steps(made, prompts)


USUAL = {
    "llama": config_of("llama"),
    "one head for all keys": config_of("llama", num_key_value_heads=1),
    "heads of 64": config_of("llama", head_dim=64),
    "qwen2": config_of("qwen2"),
    "a window wider than the slots": config_of("mistral", sliding_window=CONTEXT + 1),
    "gemma": like_llama(GemmaConfig),
    "granite": like_llama(GraniteConfig, attention_multiplier=0.1, residual_multiplier=0.5),
    "far positions": config_of(
        "llama",
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
}
UNUSUAL = {
    "small heads": config_of("llama", head_dim=8),
    "heads of a size that is no power of two": config_of("llama", head_dim=24),
    "a window": config_of("mistral"),
    "scores with a soft cap": config_of("gemma2"),
    "norms of queries": like_llama(Qwen3Config),
    "learned positions": tiny_config("gpt2"),
    "a part of the head": like_llama(PhiConfig, hidden_size=64),
    "a part of the head, usual names": like_llama(StableLmConfig, hidden_size=64),
    "a part of the head, by pairs": like_llama(GlmConfig),
    "pairs": like_llama(CohereConfig, hidden_size=64),
    "layers without positions": like_llama(SmolLM3Config, no_rope_layers=[1, 0], hidden_size=64),
    "clamped queries": like_llama(OlmoConfig, hidden_size=64, clip_qkv=30.0),
    "compressed keys": tiny_config("deepseek"),
}


@pytest.mark.parametrize("config", USUAL.values(), ids=USUAL)
def test_models_with_the_usual_attention_are_decoded_with_the_kernel(config: Any) -> None:
    assert_decodes(engine_of(model_of(config), lean=config.model_type in ("llama", "qwen2", "mistral")))


@not_on_cuda
def test_a_mixture_of_experts_may_have_it_too() -> None:
    assert_decodes(engine_of(model_of(like_llama(MixtralConfig, num_local_experts=2))))


@pytest.mark.parametrize("config", UNUSUAL.values(), ids=UNUSUAL)
def test_other_models_keep_their_own_code(config: Any, recwarn: pytest.WarningsRecorder) -> None:
    config.max_position_embeddings = CONTEXT
    assert_decodes(engine_of(model_of(config), used=False))
    assert not [warning for warning in recwarn if issubclass(warning.category, RunWarning)]


def test_another_attention_than_sdpa_keeps_its_own_code() -> None:
    assert_decodes(engine_of(model_of(config_of("llama"), "eager"), used=False))


@pytest.mark.parametrize("family", ["llama", "qwen2", "lora"])
def test_steps_are_those_of_the_path_without_the_kernel(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = with_lora() if family == "lora" else model_of(config_of(family))
    fused = engine_of(backbone)
    monkeypatch.setattr(engine, "shortcuts", lambda *args, **kwargs: step.NO_SHORTCUTS)
    plain, prompts = engine_of(backbone, used=False), random_ids(60, 130, 3, 33)
    for made in (fused, plain):
        made.prefill(range(4), prompts)
    for count in (4, 3, 1):  # fewer slots than were allocated
        for _ in range(3):
            tokens = torch.arange(count, device=fused.device) + 1
            torch.testing.assert_close(fused.step(tokens), plain.step(tokens), rtol=1e-3, atol=1e-3)
        for made in (fused, plain):
            made.keep(range(max(1, count // 2)) if count < 4 else [0, 1, 3])
    for name in ("keys", "values"):
        assert fused.cache is not None and plain.cache is not None
        for one, other in zip(fused.cache.layers, plain.cache.layers, strict=True):
            written = [getattr(layer, name)[0, :, : fused.lengths[0]] for layer in (one, other)]
            torch.testing.assert_close(*written, rtol=1e-3, atol=1e-3)


def test_in_bfloat16_steps_are_as_exact_as_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, prompts = model_of(config_of("qwen2")).bfloat16(), random_ids(60, 130, 3, 33)
    exact = copy.deepcopy(backbone).cpu().double()
    expected = torch.stack([full_hidden_states(exact, [*prompt, 7])[-1] for prompt in prompts])
    errors = []
    for used in (True, False):
        made = engine_of(backbone, used=used)
        made.prefill(range(4), prompts)
        found = made.step(torch.full((4,), 7, device=made.device)).cpu().double()
        errors.append(float((found - expected).norm() / expected.norm()))
        monkeypatch.setattr(engine, "shortcuts", lambda *args, **kwargs: step.NO_SHORTCUTS)
    assert errors[0] <= 1.5 * errors[1] + 0.01, errors


def test_a_slot_reads_a_shared_prompt_from_another_one() -> None:
    made, prompt = engine_of(model_of(config_of("llama"))), random_ids(70)[0]
    made.prefill(range(4), [prompt, prompt, *random_ids(9, seed=1), prompt])
    sequences = [list(prompt), list(prompt), *random_ids(9, seed=1), list(prompt)]
    assert_steps(made, sequences)
    assert made._step._shared_prompts.shared.tolist().count(70) >= 2
    assert made.cache is not None
    for layer in made.cache.layers:  # what a slot reads elsewhere need not be there
        for slot in range(4):
            if made._step._shared_prompts.sources[slot] != slot:
                layer.keys[slot, :, :70] = layer.values[slot, :, :70] = 100.0
    assert_steps(made, sequences)


def test_slots_that_were_saved_restored_and_copied_continue_as_before() -> None:
    made, sequences = engine_of(model_of(config_of("qwen2"))), random_ids(40, 5, 31, 64)
    made.prefill(range(4), sequences)
    assert_steps(made, sequences)
    saved, held = made.snapshot([2, 0]), [list(sequences[2]), list(sequences[0])]
    assert_steps(made, sequences)
    made.restore(saved, [1, 3])
    made.fork(0, [2])
    sequences[1], sequences[3], sequences[2] = *held, list(sequences[0])
    assert_steps(made, sequences)


def test_no_mask_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine_of(model_of(config_of("llama")))
    monkeypatch.setattr(step, "step_masks", None)
    assert_decodes(made)


@pytest.mark.parametrize(
    ("config", "lean"), [(config_of("llama"), True), (like_llama(GraniteConfig, residual_multiplier=0.5), False)]
)
def test_compiled_layers_keep_their_own_attention(config: Any, lean: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    assert_decodes(engine_of(model_of(config), used=lean, lean=lean, compiled=True))


def test_a_factor_near_1_that_bfloat16_hides_in_whole_steps_is_seen_in_single_layers() -> None:
    scaled = like_llama(GraniteConfig, residual_multiplier=0.9, attention_multiplier=SIZE**-0.5)
    assert_decodes(engine_of(model_of(scaled), lean=False))
    engine_of(model_of(scaled).bfloat16(), lean=False)
    plain = like_llama(GraniteConfig, attention_multiplier=SIZE**-0.5)
    engine_of(model_of(plain).bfloat16(), lean=True)


@pytest.mark.parametrize("number", [0.0, 5000.0])
def test_embeddings_that_are_zero_or_huge_hide_nothing(number: float) -> None:
    """As those of padding, and of tokens whose states a layer changes by less than their rounding."""
    backbone = model_of(like_llama(GraniteConfig, residual_multiplier=0.9, attention_multiplier=SIZE**-0.5)).bfloat16()
    with torch.no_grad():
        backbone.get_input_embeddings().weight[:, :16] = number
        backbone.get_input_embeddings().weight[0] = number
    model = lean_model.lean_model(backbone)
    assert model is not None and not model.agrees()


def test_what_only_several_tokens_show_is_seen() -> None:
    model = lean_model.lean_model(model_of(config_of("llama")).bfloat16())
    assert model is not None and model.agrees()
    for layer in model._layers:
        layer.scale *= 2
    assert not model.agrees()


def test_a_hook_that_comes_or_goes_between_two_engines_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    backbone = model_of(config_of("llama"))
    engine_of(backbone, lean=True, compiled=True)
    query: Any = backbone.base_model.layers[1].self_attn.q_proj
    hook = query.register_forward_hook(lambda module, args, output: output * 0.5)
    assert_decodes(engine_of(backbone, used=False, lean=False, compiled=True))
    assert_decodes(engine_of(backbone, used=True, lean=False))
    hook.remove()
    assert_decodes(engine_of(backbone, lean=True))


def test_a_hook_takes_effect() -> None:
    backbone = model_of(config_of("llama"))
    query: Any = backbone.base_model.layers[1].self_attn.q_proj
    hook = query.register_forward_hook(lambda module, args, output: output * 0.5)
    assert_decodes(engine_of(backbone, lean=False))
    hook.remove()


def test_code_that_others_have_put_in_place_of_a_forward_stays() -> None:
    backbone = model_of(config_of("llama"))
    attention: Any = backbone.base_model.layers[1].self_attn
    attention.forward = lambda *args, **kwargs: type(attention).forward(attention, *args, **kwargs)
    assert_decodes(engine_of(backbone, used=False))
    del attention.forward
    engine_of(backbone)


def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel: Any = fused_attention.turn_and_attend
    use_kernel(lambda *args: kernel(*args[:-1], 2 * args[-1]), monkeypatch)
    assert_decodes(engine_of(model_of(config_of("llama")), used=False))


def test_a_kernel_that_is_wrong_beyond_its_first_block_of_keys_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel: Any = fused_attention.turn_and_attend

    def one_block(*args: Any) -> torch.Tensor:
        *others, states, positions, sources, shared, scale = args
        summed: torch.Tensor = kernel(*others, states, positions, sources, shared, scale)
        return summed * (positions < acceptance.FUSED_BLOCK)[:, None, None]

    use_kernel(one_block, monkeypatch)
    assert_decodes(engine_of(model_of(config_of("llama")), used=False))


def test_a_kernel_that_fails_is_named_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> torch.Tensor:
        raise RuntimeError("no such\ninstruction")

    use_kernel(broken, monkeypatch)
    with pytest.warns(RunWarning, match=r"does not work here \(RuntimeError: no such instruction\)"):
        made = engine_of(model_of(config_of("llama")), used=False)
    assert_decodes(made)
    monkeypatch.setattr(acceptance, "decoding_error", None)
    assert_decodes(engine_of(made.backbone, used=False))  # not tried again, and not named again


def test_a_model_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = model_of(config_of("llama"))
    engine_of(backbone)
    monkeypatch.setattr(acceptance, "decoding_error", None)
    assert_decodes(engine_of(backbone))


def test_a_product_of_another_size_than_what_is_stored_is_unusual() -> None:
    backbone = model_of(config_of("llama"))
    calls, cache = fused_attention._calls(backbone)
    call = calls[0]
    assert fused_attention._is_usual(call, cache.layers[0])
    wide = torch.nn.Linear(call.layer.k_proj.in_features, 2 * call.layer.k_proj.out_features).to(backbone.device)
    call.layer.k_proj = wide
    assert not fused_attention._is_usual(call, cache.layers[0])
