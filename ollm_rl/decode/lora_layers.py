"""The layers of a backbone with a LoRA in decoding: three products each, in the backbone's precision.

By itself peft computes the LoRA in the precision of its weights, float32 while it is trained, in seven operations and
casts. In a decoding step most of a layer's time is that of starting them.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ollm_rl.backbones.lora_products import LoraProduct, plain_products
from ollm_rl.backbones.replaced import Forward


class LoraLayers:
    """The layers with a LoRA that `LoraProduct` can compute, for passes without gradient.

    Args:
        backbone: The model; it may have no LoRA. The LoRA's weights may change in place.

    Attributes:
        forwards: Layers, and what they compute in place of peft's own ``forward``.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        self.forwards: list[tuple[nn.Module, Forward]] = []
        self._weights: list[torch.Tensor] = []
        self._copies: list[torch.Tensor] = []
        for product in plain_products(backbone):
            weights = [
                self._in_precision(product.base.weight.dtype, part.weight) for part in (product.first, product.second)
            ]
            self.forwards.append((product.layer, _forward(product, weights)))

    def _in_precision(self, dtype: torch.dtype, weight: torch.Tensor) -> torch.Tensor:
        """The weight, or a copy in another precision, which keeps its address."""
        if weight.dtype == dtype:
            return weight
        self._weights.append(weight)
        self._copies.append(weight.detach().to(dtype))
        return self._copies[-1]

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the copies up to date, before a pass."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._weights)


def _forward(product: LoraProduct, weights: Sequence[torch.Tensor]) -> Forward:
    first, second = weights
    layer, base, scale, active = product.layer, product.base, product.scale, [product.name]

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor
        if layer.merged or layer.active_adapters != active:  # since the engine was made
            outputs = type(layer).forward(layer, inputs)
            return outputs
        outputs = base(inputs)
        if layer.disable_adapters:
            return outputs
        low = F.linear(inputs, first)
        return torch.addmm(outputs.flatten(0, -2), low.flatten(0, -2), second.T, alpha=scale).view(outputs.shape)

    return forward
