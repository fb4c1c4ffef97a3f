"""LoRA reaches every layer that reads text, experts included, and nothing that does not."""

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedModel

from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.backbones.lora import add_lora, without_lora
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import collect
from ollm_rl.decode.turns import Turns
from ollm_rl.experiments.bench.model_classes import tiny_model as tiny_class
from tests.decode.test_engine import random_ids
from tests.tiny_models import HIDDEN, VOCAB, randomized, tiny_model


def gpt_oss() -> PreTrainedModel:
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 4}  # all are used, so all must get a gradient
    config = GptOssConfig(vocab_size=VOCAB, num_hidden_layers=2, head_dim=8, sliding_window=8, **sizes, **experts)
    return randomized(GptOssForCausalLM(config).eval())


def lora_weights(backbone: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in backbone.named_parameters() if "lora_" in name}


def shake(backbone: PreTrainedModel) -> None:
    """Weights other than zero, as training would leave them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in lora_weights(backbone).values():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("family", ["gpt_oss", "gemma3"])
def test_every_tensor_of_a_lora_gets_a_gradient(family: str) -> None:
    backbone = gpt_oss() if family == "gpt_oss" else tiny_class(family)
    backbone.requires_grad_(False)
    add_lora(backbone, 2)
    shake(backbone)
    ids = torch.tensor(random_ids(20))
    backbone.base_model(input_ids=ids, use_cache=False).last_hidden_state.square().sum().backward()
    weights = lora_weights(backbone)
    assert weights.keys() == {name for name, weight in backbone.named_parameters() if weight.requires_grad}
    assert [name for name, weight in weights.items() if weight.grad is None or not weight.grad.any()] == []
    if family == "gpt_oss":
        assert sum("experts" in name for name in weights) == 2 * 2 * 2  # layers, tensors of the experts, A and B


def test_rollouts_with_a_lora_on_experts_have_the_probabilities_of_a_full_pass() -> None:
    policy = TokenPolicy(gpt_oss(), rank=2)
    before = policy.backbone(torch.tensor([[5, 6, 7]])).logits
    shake(policy.backbone)
    generator = torch.Generator().manual_seed(1)
    turns = Turns(DecodeEngine(policy.backbone, 3, 32), policy.act)
    rollout = collect(turns, random_ids(3, 14, 8), max_new_tokens=12, end_tokens=[], generator=generator)
    evaluation = policy.evaluate(rollout, reference=True)
    torch.testing.assert_close(evaluation.log_probs, rollout.log_probs[rollout.decisions], rtol=1e-3, atol=1e-3)
    assert evaluation.reference is not None
    assert (evaluation.reference - evaluation.log_probs).abs().max() > 0.1
    with without_lora(policy.backbone):
        torch.testing.assert_close(policy.backbone(torch.tensor([[5, 6, 7]])).logits, before)


def test_a_lora_on_a_plain_model_is_on_its_linear_layers_but_not_on_the_head() -> None:
    backbone = tiny_model("llama")
    add_lora(backbone, 2)
    layers = {name.split(".lora_")[0].split(".")[-1] for name in lora_weights(backbone)}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
