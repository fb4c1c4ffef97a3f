"""Linear layers that read one tensor as one product: those of queries, keys and values, or the halves of a perceptron.

A step of decoding has few rows, so that a product takes as long as it takes to begin and to read the weights; one large
product is faster than three small ones.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel


class JointProduct:
    """Frozen linear layers that are given one tensor, one after the other.

    Their weights become parts of one tensor, with the values that they have; what is written to them later in place,
    this sees.

    Args:
        layers: In the order in which a pass calls them.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._weight = _joined([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias = _joined(biases) if biases else None
        self._given: torch.Tensor | None = None
        self._found: torch.Tensor | None = None
        ends = list(accumulate(layer.out_features for layer in layers))
        parts = pairwise([0, *ends])
        self.forwards = [
            (layer, self._part(start, end, last=end == ends[-1]))
            for layer, (start, end) in zip(layers, parts, strict=True)
        ]

    def _part(self, start: int, end: int, *, last: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        """What stands for the ``forward`` of a layer: (..., inputs) -> (..., outputs)."""

        def forward(given: torch.Tensor) -> torch.Tensor:
            if self._found is None or self._given is not given:
                self._given, self._found = given, F.linear(given, self._weight, self._bias)
            part = self._found[..., start:end]
            if last:
                self._given = self._found = None
            return part

        return forward


def joint_products(backbone: PreTrainedModel) -> list[JointProduct]:
    """Find the layers that are given one tensor, from a pass over one token, and join them.

    Layers whose weights are trained, and those of other kinds (a LoRA's, quantised ones), stay by themselves.
    """
    calls: list[tuple[nn.Linear, torch.Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda layer, given: calls.append((layer, given[0])))
        for module in backbone.base_model.modules()
        # A forward of its own was put there by somebody else.
        if type(module) is nn.Linear and not module.weight.requires_grad and "forward" not in vars(module)
    ]
    token = torch.zeros(1, 1, dtype=torch.long, device=backbone.device)
    with torch.no_grad():
        backbone.base_model(input_ids=token, use_cache=False)
    for hook in hooks:
        hook.remove()
    times = Counter(layer for layer, _ in calls)
    groups: list[list[nn.Linear]] = []
    before: torch.Tensor | None = None
    for layer, given in calls:
        if given is before and _alike(layer, groups[-1][0]) and times[layer] == 1:
            groups[-1].append(layer)
        else:
            groups.append([layer])
        before = given
    return [JointProduct(group) for group in groups if len(group) > 1 and times[group[0]] == 1]


@contextmanager
def joined(products: Sequence[JointProduct]) -> Iterator[None]:
    """Let the layers of these products compute them together; outside of it they are as they were."""
    forwards = [pair for product in products for pair in product.forwards]
    for layer, forward in forwards:
        vars(layer)["forward"] = forward
    try:
        yield
    finally:
        for layer, _ in forwards:
            del vars(layer)["forward"]


def _alike(one: nn.Linear, other: nn.Linear) -> bool:
    return one.weight.dtype == other.weight.dtype and (one.bias is None) == (other.bias is None)


def _joined(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor of which the parameters are parts, one below the other."""
    first, rows = parameters[0], sum(len(parameter) for parameter in parameters)
    ends = [parameter.data_ptr() + parameter.nbytes for parameter in parameters]
    one_storage = len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1
    if one_storage and [parameter.data_ptr() for parameter in parameters[1:]] == ends[:-1]:  # joined before
        return first.data.as_strided((rows, *first.shape[1:]), first.stride())
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, whole.split([len(parameter) for parameter in parameters]), strict=True):
        parameter.data = part
    return whole
