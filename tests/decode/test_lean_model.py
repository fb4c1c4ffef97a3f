"""Steps of a decoder of the usual shape in few operations: what transformers computes, or not used at all."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from transformers import AutoModelForCausalLM, GraniteConfig, Ministral3Config, PreTrainedModel

from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.lean_model import LeanModel, lean_model
from ollm_rl.decode.live_chunks import CHUNK
from tests.decode.test_engine import random_ids
from tests.tiny_models import CONTEXT, full_hidden_states, greedy_generate, randomized, tiny_config, unshared


def engine_of(backbone: PreTrainedModel, *, lean: bool = True) -> DecodeEngine:
    """An engine of two slots, which does, or does not, compute its steps by a `LeanModel`."""
    engine = DecodeEngine(backbone, 2, CONTEXT)
    assert (engine._step._lean is not None) == lean
    return engine


def assert_decodes(engine: DecodeEngine) -> None:
    """Check that a step gives the hidden states of one pass, to the end of a chunk and beyond."""
    prompts = random_ids(CHUNK - 1, 5)
    engine.restart(2)
    engine.prefill([0, 1], prompts)
    for token in (7, 8):
        found = engine.step(torch.tensor([token, token]))
        for row, prompt in enumerate(prompts):
            prompt.append(token)
            expected = full_hidden_states(engine.backbone, prompt)[-1]
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def with_llama3_positions() -> PreTrainedModel:
    config = tiny_config("llama")
    config.num_key_value_heads, config.attention_bias, config.mlp_bias = config.num_attention_heads, True, True
    config.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": 100.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    return randomized(AutoModelForCausalLM.from_config(config).eval())


def test_a_model_whose_parts_lack_an_attribute_keeps_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = unshared("llama")
    monkeypatch.setattr("ollm_rl.decode.acceptance.lean_model", lambda model: model.base_model.of_another_name)
    assert_decodes(engine_of(backbone, lean=False))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_tokens_are_those_of_generate(family: str, frozen: bool) -> None:
    backbone, count = unshared(family).requires_grad_(not frozen), CHUNK
    prompts, head = random_ids(CHUNK - 2, 3), backbone.get_output_embeddings()
    expected = [greedy_generate(backbone, prompt, count) for prompt in prompts]
    engine = engine_of(backbone)
    with torch.no_grad():
        tokens = [head(engine.prefill([0, 1], prompts)).argmax(-1)]
        for _ in range(count - 1):
            tokens.append(head(engine.step(tokens[-1])).argmax(-1))
    assert torch.stack(tokens, 1).tolist() == expected


def test_positions_and_biases_of_any_kind_are_the_models_own() -> None:
    assert_decodes(engine_of(with_llama3_positions().requires_grad_(False)))


def test_frozen_layers_that_read_one_tensor_are_one_product_and_need_no_memory_of_their_own() -> None:
    backbone = unshared("llama").requires_grad_(False)
    engine = engine_of(backbone)
    for layer in backbone.base_model.layers:
        parts = layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj
        assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1
    assert_decodes(engine)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1.2)
    assert_decodes(engine)


def test_a_lora_is_computed_with_the_weights_of_the_moment() -> None:
    torch.manual_seed(0)
    policy = TokenPolicy(unshared("llama"), rank=4)
    engine = engine_of(policy.backbone)
    for _ in range(2):
        with torch.no_grad():
            for name, weight in policy.backbone.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0, 0.3)
        assert_decodes(engine)


def test_layers_of_which_only_some_have_a_lora_are_computed_as_peft_does(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], rank_pattern={"up_proj": 2})
    backbone = get_peft_model(unshared("qwen2"), settings).get_base_model()
    with torch.no_grad():
        for name, weight in backbone.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    assert_decodes(engine_of(backbone))


@pytest.mark.parametrize("merged", [False, True])
def test_a_lora_that_is_merged_or_put_aside_later_is_left_to_peft(merged: bool) -> None:
    torch.manual_seed(0)
    policy = TokenPolicy(unshared("llama"), rank=4)
    with torch.no_grad():
        for name, weight in policy.backbone.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    engine = engine_of(policy.backbone)
    for layer in policy.backbone.modules():
        if isinstance(layer, LoraLinear):
            layer.merge() if merged else layer.enable_adapters(False)
    assert_decodes(engine)


def test_a_model_of_this_shape_that_computes_something_else_keeps_its_own_code() -> None:
    settings = {**tiny_config("llama").to_dict(), "num_key_value_heads": 4, "residual_multiplier": 0.5}
    backbone = randomized(AutoModelForCausalLM.from_config(GraniteConfig(**settings)).eval())
    assert isinstance(lean_model(backbone), LeanModel)
    engine = engine_of(backbone, lean=False)
    assert_decodes(engine)
    assert engine.cache is not None and engine.cache.stacks[0].dim() == 6, "its keys are read in chunks all the same"


def test_models_with_other_parts_keep_their_own_code() -> None:
    assert lean_model(unshared("gpt2")) is None and lean_model(unshared("gemma2")) is None


def test_a_model_that_scales_queries_by_far_positions_keeps_its_own_code() -> None:
    config = Ministral3Config(**{**tiny_config("llama").to_dict(), "num_key_value_heads": 4, "rope_parameters": None})
    backbone = randomized(AutoModelForCausalLM.from_config(config).eval())
    assert config.rope_parameters["original_max_position_embeddings"] > CONTEXT, "no comparison would show it"
    assert_decodes(engine_of(backbone, lean=False))


def test_code_that_others_have_added_to_a_model_takes_effect() -> None:
    backbone = unshared("llama")
    hook = backbone.base_model.layers[1].mlp.register_forward_hook(lambda module, args, output: output * 0.5)
    assert_decodes(engine_of(backbone, lean=False))
    hook.remove()
    engine_of(backbone)
