"""Joins linear layers with the same input into one matrix product: queries, keys and values, or an MLP's halves.

A decoding step has few rows, so a product's time is that of its launch and of reading the weights. One large product is
faster than three small ones.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ollm_rl.backbones.replaced import Forward, replaced


class JointProduct:
    """Frozen linear layers that are called one after the other with the same input.

    Their weights become views of one tensor and keep their values, so later in-place changes to them take effect here.

    Args:
        layers: The layers, in the order in which a pass calls them.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._weight = concatenated([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias = concatenated(biases) if biases else None
        self._inputs: torch.Tensor | None = None
        self._outputs: torch.Tensor | None = None
        ends = list(accumulate(layer.out_features for layer in layers))
        parts = pairwise([0, *ends])
        self.forwards = [
            (layer, self._part(start, end, last=end == ends[-1]))
            for layer, (start, end) in zip(layers, parts, strict=True)
        ]

    def _part(self, start: int, end: int, *, last: bool) -> Forward:
        """The replacement of a layer's ``forward``: (..., inputs) -> (..., outputs)."""

        def forward(inputs: torch.Tensor) -> torch.Tensor:
            if self._outputs is None or self._inputs is not inputs:
                self._inputs, self._outputs = inputs, F.linear(inputs, self._weight, self._bias)
            part = self._outputs[..., start:end]
            if last:
                self._inputs = self._outputs = None
            return part

        return forward


def joint_products(backbone: PreTrainedModel) -> list[JointProduct]:
    """Find the layers that get the same input in a pass over one token, and join them.

    Trainable layers and layers of other types (of a LoRA, or quantized) are not joined.
    """
    calls: list[tuple[nn.Linear, torch.Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda layer, args: calls.append((layer, args[0])))
        for module in backbone.base_model.modules()
        # A replaced forward belongs to other code, so such a layer is left out.
        if type(module) is nn.Linear and not module.weight.requires_grad and "forward" not in vars(module)
    ]
    token = torch.zeros(1, 1, dtype=torch.long, device=backbone.device)
    with torch.no_grad():
        backbone.base_model(input_ids=token, use_cache=False)
    for hook in hooks:
        hook.remove()
    num_calls = Counter(layer for layer, _ in calls)
    groups: list[list[nn.Linear]] = []
    previous_input: torch.Tensor | None = None
    for layer, layer_input in calls:
        if layer_input is previous_input and _same_type(layer, groups[-1][0]) and num_calls[layer] == 1:
            groups[-1].append(layer)
        else:
            groups.append([layer])
        previous_input = layer_input
    return [JointProduct(group) for group in groups if len(group) > 1 and num_calls[group[0]] == 1]


@contextmanager
def joined(products: Sequence[JointProduct]) -> Iterator[None]:
    """Within this context the layers compute their products jointly; outside of it they are unchanged."""
    with replaced(pair for product in products for pair in product.forwards):
        yield


def _same_type(first: nn.Linear, second: nn.Linear) -> bool:
    return first.weight.dtype == second.weight.dtype and (first.bias is None) == (second.bias is None)


def concatenated(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor, concatenated along the rows, of which the parameters become views."""
    first, rows = parameters[0], sum(len(parameter) for parameter in parameters)
    ends = [parameter.data_ptr() + parameter.nbytes for parameter in parameters]
    one_storage = len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1
    if one_storage and [parameter.data_ptr() for parameter in parameters[1:]] == ends[:-1]:  # already concatenated
        return first.data.as_strided((rows, *first.shape[1:]), first.stride())
    result = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, result.split([len(parameter) for parameter in parameters]), strict=True):
        parameter.data = part
    return result
