"""RMS norms as one operation: the equation, and only where the model's own norm computes it."""

import pytest
import torch
from torch import nn

from ollm_rl.backbones.fused_norms import FusedNorm, fused_norms
from tests.tiny_models import tiny_model


class Norm(nn.Module):
    """A norm whose output is ``factor`` times that of the equation."""

    def __init__(self, eps: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]), requires_grad=False)
        self.variance_epsilon, self.factor = eps, factor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        size = (inputs.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt()
        return self.factor * self.weight * inputs / size


def test_a_norm_is_the_input_divided_by_its_root_mean_square() -> None:
    # The mean square of 1 and 7 is 25.
    torch.testing.assert_close(FusedNorm(Norm()).forward(torch.tensor([[1.0, 7]])), torch.tensor([[0.2, 2.8]]))


@pytest.mark.parametrize(("family", "count"), [("llama", 5), ("qwen2", 5), ("gemma2", 0), ("gpt2", 0)])
def test_frozen_norms_of_the_equation_are_found(family: str, count: int) -> None:
    # Two blocks have two norms each, and there is a last one. Gemma's multiply by 1 + w, GPT-2's subtract the mean.
    model = tiny_model(family).requires_grad_(False)
    assert len(fused_norms(model)) == count
    assert fused_norms(model.requires_grad_(True)) == [], "their weights would get no gradient"


@pytest.mark.parametrize(("factor", "used"), [(1.0, True), (1.05, False)])
def test_a_norm_that_computes_something_else_keeps_its_forward(factor: float, used: bool) -> None:
    assert bool(fused_norms(nn.Sequential(Norm(1e-5, factor)))) is used


def test_another_use_of_eps_is_noticed() -> None:
    layer = Norm(1e-5)
    assert FusedNorm(layer).agrees()
    layer.forward = lambda inputs: layer.weight * inputs / inputs.square().mean(-1, keepdim=True).sqrt()  # type: ignore[method-assign]
    assert not FusedNorm(layer).agrees()


def test_a_norm_with_a_gate_keeps_its_forward() -> None:
    class Gated(Norm):
        def forward(self, inputs: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(inputs) if gate is None else super().forward(inputs) * gate

    assert fused_norms(nn.Sequential(Gated(1e-5))) == []


def test_a_norm_that_expects_other_inputs_keeps_its_forward() -> None:
    class OfHeads(Norm):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            batch, heads, tokens, width = inputs.shape
            return super().forward(inputs.view(batch * heads, tokens, width)).view(batch, heads, tokens, width)

    assert fused_norms(nn.Sequential(OfHeads(1e-5))) == []


def test_norms_are_found_where_autograd_is_off() -> None:
    model = tiny_model("llama").requires_grad_(False)
    with torch.inference_mode():
        assert len(fused_norms(model)) == 5
