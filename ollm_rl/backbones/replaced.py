"""Other ``forward`` functions for some layers of a model, for the duration of a pass."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Forward = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def replaced(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Within this context each layer computes by the function beside it; outside of it the layers are unchanged."""
    pairs = list(forwards)
    for layer, forward in pairs:
        vars(layer)["forward"] = forward
    try:
        yield
    finally:
        for layer, _ in pairs:
            del vars(layer)["forward"]


def is_untouched(module: nn.Module) -> bool:
    """Whether a module has no replaced forward and no hooks, but for those by which transformers notes outputs."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    own = all(getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks)
    return own and "forward" not in vars(module)
