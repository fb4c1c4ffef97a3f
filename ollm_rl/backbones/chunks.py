"""Results for many rows, such as losses over a large vocabulary, without all that they need at once.

Letters: M positions, n of them in a chunk, V vocabulary; ``...`` any further dimensions.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")
MAX_LOGITS = 2**25  # elements in one chunk of logits: 128 MiB in float32


def each_chunk(function: Callable[..., T], *rows: torch.Tensor, size: int) -> Iterator[T]:
    """What a function returns for each ``size`` rows of the tensors, (M, ...).

    The backward pass computes a chunk again, by the same operations, so that nothing of it is kept. Only the last chunk
    is, because it is the first that the backward pass comes to.
    """
    *chunks, last = zip(*(tensor.split(size) for tensor in rows), strict=True)
    for chunk in chunks:
        result: T = checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False)
        yield result
    yield function(*last)


def in_chunks(
    function: Callable[..., tuple[torch.Tensor, ...]],
    *rows: torch.Tensor,
    vocab_size: int,
) -> tuple[torch.Tensor, ...]:
    """Results of a function that makes logits for rows, of which only one chunk's exist at a time.

    The backward pass computes a chunk's logits again, as in `each_chunk`.

    Args:
        function: Takes n rows of every tensor, makes logits (n, V) of them, and returns tensors (n, ...).
        rows: Tensors (M, ...).
        vocab_size: V.

    Returns:
        What the function returns, each (M, ...).
    """
    results = each_chunk(function, *rows, size=max(1, MAX_LOGITS // vocab_size))
    return tuple(torch.cat(columns) for columns in zip(*results, strict=True))
