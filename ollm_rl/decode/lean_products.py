"""Linear layers with the same input as one matrix product, with what their LoRAs add to it.

Letters: B rows, r sum of the LoRAs' ranks.
"""

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ollm_rl.backbones.lora_products import LoraProduct
from ollm_rl.decode.joint_products import concatenated


class Product:
    """Linear layers with the same input. Where they are not plain and frozen, but for a LoRA, each computes its own.

    Args:
        layers: The layers.
        loras: The layers of the model that have a LoRA, those of them that are plain.

    Attributes:
        copies: Copies of the LoRAs' weights, which may change in place, and the weights; see ``LeanModel.refresh``.
    """

    def __init__(self, layers: tuple[Any, ...], loras: Mapping[nn.Module, LoraProduct]) -> None:
        self._layers = layers
        self._weight = self._bias = None
        self.copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._loras = [loras.get(layer) for layer in layers]
        bases = [lora.base if lora else layer for layer, lora in zip(layers, self._loras, strict=True)]
        plain = all(type(base) is nn.Linear and not base.weight.requires_grad for base in bases)
        if plain and len({base.bias is None for base in bases}) == 1:
            self._weight = concatenated([base.weight for base in bases])
            self._bias = None if bases[0].bias is None else concatenated([base.bias for base in bases])
            self._columns = [slice(*ends) for ends in pairwise(accumulate([0, *(base.out_features for base in bases)]))]
            self._copy_loras(self._weight)

    def _copy_loras(self, like: torch.Tensor) -> None:
        used = [lora for lora in self._loras if lora]
        firsts, seconds = ([getattr(lora, part).weight for lora in used] for part in ("first", "second"))
        if used:
            self._first = torch.cat([weight.detach().to(like.dtype) for weight in firsts])  # (r, inputs)
            self._parts = self._first.split([len(weight) for weight in firsts])
            self._seconds = [weight.detach().to(like.dtype, copy=True) for weight in seconds]
            self.copies = list(zip([*self._parts, *self._seconds], [*firsts, *seconds], strict=True))

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, inputs) -> (B, outputs of all layers)."""
        if not self._is_joint():
            return torch.cat([layer(inputs) for layer in self._layers], -1)
        assert self._weight is not None
        outputs = F.linear(inputs, self._weight, self._bias)
        self._add_loras(outputs, inputs)
        return outputs

    def add_to(self, residual: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add the product to a residual, (B, outputs)."""
        if self._weight is None or self._bias is not None or not self._is_joint():
            residual += self(inputs)
        else:
            residual.addmm_(inputs, self._weight.T)
            self._add_loras(residual, inputs)

    def _is_joint(self) -> bool:
        """Whether the LoRAs are still as they were when this was made."""
        used = [lora for lora in self._loras if lora]
        same = all(not lora.layer.merged and lora.layer.active_adapters == [lora.name] for lora in used)
        return self._weight is not None and same

    def _add_loras(self, outputs: torch.Tensor, inputs: torch.Tensor) -> None:
        if not self.copies:
            return
        low = F.linear(inputs, self._first)
        lows = iter(zip(low.split([len(part) for part in self._parts], -1), self._seconds, strict=True))
        for columns, lora in zip(self._columns, self._loras, strict=True):
            if lora:
                low, second = next(lows)
                if not lora.layer.disable_adapters:
                    outputs[:, columns].addmm_(low, second.T, alpha=lora.scale)
