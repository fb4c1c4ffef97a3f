"""Linear layers that read one input, such as queries, keys and values, or an MLP's halves: they can share a product."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ollm_rl.backbones.replaced import Forward

Layer = TypeVar("Layer", bound=nn.Module)


def shared_inputs(backbone: PreTrainedModel, kinds: Mapping[Layer, object]) -> list[list[Layer]]:
    """Groups of two or more layers that a pass over one token calls one after the other with the same input, and once.

    Args:
        backbone: The model.
        kinds: The layers that may be in a group, and what layers of one group have in common.
    """
    calls: list[tuple[Layer, torch.Tensor]] = []
    hooks = [layer.register_forward_pre_hook(lambda layer, args: calls.append((layer, args[0]))) for layer in kinds]
    token = torch.zeros(1, 1, dtype=torch.long, device=backbone.device)
    try:
        with torch.no_grad():
            backbone.base_model(input_ids=token, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    num_calls = Counter(layer for layer, _ in calls)
    groups: list[list[Layer]] = []
    previous_input: torch.Tensor | None = None
    for layer, layer_input in calls:
        if layer_input is previous_input and kinds[layer] == kinds[groups[-1][0]] and num_calls[layer] == 1:
            groups[-1].append(layer)
        else:
            groups.append([layer])
        previous_input = layer_input
    return [group for group in groups if len(group) > 1 and num_calls[group[0]] == 1]


class _Call:
    """The input of the latest call, and the outputs that are still to be fetched."""

    def __init__(self) -> None:  # attributes of the class would have passes compiled twice
        self.inputs: torch.Tensor | None = None
        self.outputs: Sequence[torch.Tensor] = ()


def one_for_all(
    layers: Sequence[nn.Module], compute: Callable[[torch.Tensor], Sequence[torch.Tensor]]
) -> list[tuple[nn.Module, Forward]]:
    """Replacements of the layers' ``forward``: the first call computes all outputs, the others only fetch theirs.

    Args:
        layers: In the order in which a pass calls them with the same input. With another input a layer is right too.
        compute: The outputs of all layers for one input.
    """
    call = _Call()

    def part(index: int, *, last: bool) -> Forward:
        def forward(inputs: torch.Tensor) -> torch.Tensor:
            if call.inputs is not inputs:
                call.inputs, call.outputs = inputs, compute(inputs)
            output = call.outputs[index]
            if last:
                call.inputs, call.outputs = None, ()
            return output

        return forward

    return [(layer, part(index, last=index == len(layers) - 1)) for index, layer in enumerate(layers)]


def concatenated(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor, concatenated along the rows, of which the parameters become views; they keep their values."""
    first, rows = parameters[0], sum(len(parameter) for parameter in parameters)
    if len(parameters) == 1:
        return first.data
    ends = [parameter.data_ptr() + parameter.nbytes for parameter in parameters]
    one_storage = len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1
    if one_storage and [parameter.data_ptr() for parameter in parameters[1:]] == ends[:-1]:  # already concatenated
        return first.data.as_strided((rows, *first.shape[1:]), first.stride())
    with torch.inference_mode(False):  # passes with gradient need them too
        result = torch.cat([parameter.data for parameter in parameters])
        for parameter, part in zip(parameters, result.split([len(parameter) for parameter in parameters]), strict=True):
            parameter.data = part
    return result
