"""Compiles the layers of a model once for all of them, where the whole model would be compiled layer by layer.

Layers differ in their weights, which a compiled function takes as inputs, and in the number by which they find their
part of the cache. So each gets a cache that holds only its own part, and the number 0.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ollm_rl.backbones.replaced import is_untouched, replaced

NUMBER = "layer_idx"
# Kinds of layers, as those with and without a window. Each is compiled by itself, for passes over prompts and for
# steps, and torch gives up after eight.
MOST_KINDS = 4


class CompiledLayers:
    """The layers of a model, computed by one function.

    Args:
        layers: All of one class, in order.
        function: Its ``forward``, compiled.
    """

    def __init__(self, layers: Sequence[nn.Module], function: Callable[..., Any]) -> None:
        self._layers, self._function = layers, function
        self._numbered = [module for layer in layers for module in layer.modules() if NUMBER in vars(module)]

    @contextmanager
    def used(self, *, step: bool) -> Iterator[None]:
        """Within this context the model's layers are computed by the function.

        Args:
            step: Whether for steps, of any number of rows, or for passes, which may have any number of tokens too.
        """
        numbers = [vars(module)[NUMBER] for module in self._numbered]
        forwards = [(layer, self._forward(index, step)) for index, layer in enumerate(self._layers)]
        for module in self._numbered:
            setattr(module, NUMBER, 0)
        try:
            with replaced(forwards):
                yield
        finally:
            for module, number in zip(self._numbered, numbers, strict=True):
                setattr(module, NUMBER, number)

    def _forward(self, index: int, step: bool) -> Callable[..., Any]:
        def prepared(argument: Any) -> Any:
            if isinstance(argument, Cache):
                return _cache_of_layer(argument, index)
            for tensor in argument if isinstance(argument, tuple) else (argument,):
                if isinstance(tensor, torch.Tensor):
                    torch._dynamo.maybe_mark_dynamic(tensor, (0,) if step else _sizes_of_texts(tensor))
            return argument

        def forward(*args: Any, **kwargs: Any) -> Any:
            named = {name: prepared(argument) for name, argument in kwargs.items()}
            return self._function(self._layers[index], *map(prepared, args), **named)

        return forward


def compiled_layers(backbone: PreTrainedModel) -> CompiledLayers | None:
    """The layers of a model as one compiled function; None if that does not compute what the model does.

    This is tried on a few tokens, without compiling.
    """
    for module in backbone.base_model.modules():
        if not isinstance(module, nn.ModuleList) or len({type(layer) for layer in module}) != 1 or len(module) < 2:
            continue
        # What is compiled for one layer would leave out another's hook.
        if not all(map(is_untouched, module.modules())):
            continue
        if len({_kind(layer) for layer in module}) > MOST_KINDS:
            continue
        if _agrees(backbone, list(module)):
            return CompiledLayers(list(module), torch.compile(type(module[0]).forward))
    return None


def _sizes_of_texts(tensor: torch.Tensor) -> tuple[int, ...]:
    """Dimensions of rows and tokens: the first two, of a mask (B, 1, T, T) all but the second."""
    return (0, 2, 3) if tensor.dim() == 4 else tuple(range(min(2, tensor.dim())))


def _kind(layer: nn.Module) -> tuple[tuple[str, str, object], ...]:
    """The settings in a layer's modules. What is compiled for one layer serves those with the same."""
    plain = (bool, int, float, str, type(None))
    return tuple(
        (path, name, value)
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, plain) and name != NUMBER
    )


@torch.no_grad()
def _agrees(backbone: PreTrainedModel, layers: Sequence[nn.Module]) -> bool:
    """Whether a model uses all layers, and computes the same with their numbers and caches changed, bit by bit.

    Those of a vision tower, for one, are not used for text.
    """
    used: set[nn.Module] = set()

    def forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
        used.add(layer)
        return type(layer).forward(layer, *args, **kwargs)

    tokens = torch.arange(1, 9, device=backbone.device)[None] % backbone.get_input_embeddings().weight.shape[0]
    caches = DynamicCache(), DynamicCache()
    expected = backbone.base_model(input_ids=tokens, past_key_values=caches[0], use_cache=True).last_hidden_state
    try:
        with CompiledLayers(layers, forward).used(step=False):
            found = backbone.base_model(input_ids=tokens, past_key_values=caches[1], use_cache=True).last_hidden_state
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a layer raises that does not expect this
        return False
    states = [[part for layer in cache.layers for part in (layer.keys, layer.values)] for cache in caches]
    equal = len(states[0]) == len(states[1]) and all(map(torch.equal, *states))
    return used == set(layers) and equal and torch.equal(found, expected)


def _cache_of_layer(cache: Cache, index: int) -> Cache:
    """A cache of one layer, which is that of ``cache``."""
    if isinstance(cache, DynamicCache):  # gets its layers when they are first used
        cache.layers += [DynamicLayer() for _ in range(len(cache.layers), index + 1)]
    return Cache(layers=[cache.layers[index]])
