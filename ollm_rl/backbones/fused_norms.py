"""RMS norms as one operation each (Zhang and Sennrich 2019), in place of the eight that models of transformers take."""

from inspect import signature
from typing import Any

import torch
from torch import nn

from ollm_rl.backbones.replaced import Forward


class FusedNorm:
    """An RMS norm, y = w * x / sqrt(mean(x^2) + eps), as torch computes it.

    Args:
        layer: A norm with the attributes ``weight`` (H,) and ``variance_epsilon``.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., H) -> (..., H)."""
        weight = self.layer.weight
        return nn.functional.rms_norm(inputs, weight.shape, weight, self.layer.variance_epsilon)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def agrees(self) -> bool:
        """Whether outputs and gradients are the layer's own at random numbers, which are so small that eps matters."""
        weight, generator = self.layer.weight, torch.Generator().manual_seed(0)
        scale = float(self.layer.variance_epsilon) ** 0.5
        inputs, direction = (torch.randn(5, len(weight), generator=generator).to(weight) for _ in range(2))
        inputs = (scale * inputs).requires_grad_()
        pairs = []
        for forward in (self.forward, self.layer.forward):
            outputs = forward(inputs)
            pairs.append((outputs, *torch.autograd.grad(outputs, inputs, direction)))
        return all(
            found.dtype == expected.dtype and (found - expected).norm() <= 0.02 * expected.norm()
            for found, expected in zip(*pairs, strict=True)
        )


def fused_norms(model: nn.Module) -> list[tuple[nn.Module, Forward]]:
    """The frozen norms of a model for which `FusedNorm` gives the same, as one of each kind shows, with its forwards.

    Others, such as Gemma's, which multiply by 1 + w, keep their own.
    """
    agree: dict[tuple[object, ...], bool] = {}
    pairs: list[tuple[nn.Module, Forward]] = []
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not hasattr(layer, "variance_epsilon"):
            continue
        # A replaced forward belongs to other code; a norm with a gate has a second argument.
        if weight.requires_grad or "forward" in vars(layer) or len(signature(layer.forward).parameters) != 1:
            continue
        norm, kind = FusedNorm(layer), (type(layer), weight.shape, weight.dtype, weight.device, layer.variance_epsilon)
        if kind not in agree:
            agree[kind] = _agrees(norm)
        if agree[kind]:
            pairs.append((layer, norm.forward))
    return pairs


def _agrees(norm: FusedNorm) -> bool:
    try:
        return norm.agrees()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a layer raises that expects other inputs
        return False
