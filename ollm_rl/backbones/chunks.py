"""Losses over a large vocabulary without all logits at once.

Letters: M positions, n of them in a chunk, V vocabulary; ``...`` any further dimensions.
"""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 2**25  # elements in one chunk of logits: 128 MiB in float32


def in_chunks(
    function: Callable[..., tuple[torch.Tensor, ...]],
    *rows: torch.Tensor,
    vocab_size: int,
) -> tuple[torch.Tensor, ...]:
    """Results of a function that makes logits for rows, of which only one chunk's exist at a time.

    The backward pass computes a chunk's logits again, by the same operations. Only those of the last chunk are kept,
    because it is the first that the backward pass comes to.

    Args:
        function: Takes n rows of every tensor, makes logits (n, V) of them, and returns tensors (n, ...).
        rows: Tensors (M, ...).
        vocab_size: V.

    Returns:
        What the function returns, each (M, ...).
    """
    *chunks, last = zip(*(tensor.split(max(1, MAX_LOGITS // vocab_size)) for tensor in rows), strict=True)
    results = [checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    results.append(function(*last))
    return tuple(torch.cat(columns) for columns in zip(*results, strict=True))
