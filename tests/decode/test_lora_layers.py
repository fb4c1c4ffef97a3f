"""Decoding with a LoRA computes what peft computes, with the weights of the moment."""

import copy

import pytest
import torch
from peft.tuners.lora.layer import Linear

from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.backbones.lora import without_lora
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.lora_layers import LoraLayers
from tests.decode.test_engine import random_ids
from tests.tiny_models import HIDDEN, full_hidden_states, tiny_model

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


def policy_with_lora(family: str, dtype: torch.dtype, device: str = "cpu") -> TokenPolicy:
    """A policy whose LoRA changes the hidden states."""
    torch.manual_seed(0)
    policy = TokenPolicy(tiny_model(family).to(device, dtype), rank=4)
    with torch.no_grad():
        for name, weight in policy.backbone.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    return policy


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the expected numbers."""
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_steps_follow_the_weights_of_a_lora(dtype: torch.dtype, tolerance: float, device: str) -> None:
    """No further from the same weights in float64 than peft's own pass, and a little for rounding in another order."""
    policy = policy_with_lora("llama", dtype, device)
    engine = DecodeEngine(policy.backbone, 2, 16)
    prompts = random_ids(5, 7)
    for change in range(3):
        engine.restart(2)
        engine.prefill([0, 1], prompts)
        found = engine.step(torch.tensor([3, 4], device=device))
        for row, token in zip(range(2), (3, 4), strict=True):
            tokens, exact = [*prompts[row], token], copy.deepcopy(policy.backbone).cpu().double()
            expected = full_hidden_states(exact, tokens)[-1]
            by_peft = full_hidden_states(policy.backbone, tokens)[-1].cpu()
            assert distance(found[row].cpu(), expected) <= 1.5 * distance(by_peft, expected) + tolerance
        with torch.no_grad():  # in place, as an optimiser
            for weight in policy.backbone.parameters():
                if weight.requires_grad:
                    weight.mul_(1.5) if change == 0 else weight.zero_()
    with without_lora(policy.backbone):
        engine.restart(2)
        engine.prefill([0, 1], prompts)
        plain = engine.step(torch.tensor([3, 4], device=device))
    torch.testing.assert_close(plain, found)  # with zeros the LoRA changes nothing


def test_all_plain_layers_are_computed_as_peft_does() -> None:
    policy = policy_with_lora("qwen2", torch.bfloat16)
    layers = LoraLayers(policy.backbone)
    plain = [module for module in policy.backbone.modules() if isinstance(module, Linear)]
    assert {layer for layer, _ in layers.forwards} == set(plain)
    layer, forward = layers.forwards[0]
    inputs = torch.randn(3, 1, HIDDEN).bfloat16()
    torch.testing.assert_close(forward(inputs), layer(inputs), rtol=0.05, atol=0.05)
    assert not LoraLayers(tiny_model("gpt2")).forwards


def test_a_lora_that_is_merged_or_put_aside_later_is_left_to_peft() -> None:
    layer, forward = LoraLayers(policy_with_lora("llama", torch.float32).backbone).forwards[0]
    assert isinstance(layer, Linear)
    inputs = torch.randn(3, 1, HIDDEN)
    plain, adapted = layer.base_layer(inputs), layer(inputs)
    assert not torch.allclose(plain, adapted, atol=0.01)
    layer.merge()
    torch.testing.assert_close(forward(inputs), adapted, rtol=1e-4, atol=1e-4)
    layer.unmerge()
    layer.set_adapter([])
    torch.testing.assert_close(forward(inputs), plain, rtol=1e-4, atol=1e-4)
