"""Which episodes share a pass of an update: those of similar length, so that little is computed on padding.

The time to start a pass, whatever its size, is counted in tokens that take as long: `starting_tokens`.
"""

from collections.abc import Sequence

import numpy as np

PASS_TOKENS = 8_192
CPU_STARTING_TOKENS = 128
# What a GPU could compute while the host starts the kernels of one forward pass: 0.05 s for 30 layers, at the 2e14
# operations per second that an H100 reaches in bfloat16. An estimate; a pass of SmolLM2-135M with gradient was seen to
# take 0.2 s or more there whatever its size.
STARTING_OPERATIONS = 1e13
GRADIENT_COST = 2  # passes without gradient that take as long as one with; the backbone's weights are frozen


def starting_tokens(num_parameters: int, device_type: str) -> int:
    """Tokens that take as long as starting a pass, with 2 operations per parameter and token (Kaplan et al. 2020)."""
    return CPU_STARTING_TOKENS if device_type == "cpu" else int(STARTING_OPERATIONS / (2 * num_parameters))


def grouped(sizes: Sequence[int], *, limit: int, overhead: int) -> list[list[int]]:
    """Groups of episodes that take the least time, each padded to its longest.

    A group of n episodes takes ``overhead`` and n times the longest one's size.

    Args:
        sizes: Tokens of every episode, ascending.
        limit: Maximum of n times the longest one's size; an episode beyond it is a group of its own.
        overhead: Tokens that take as long as starting a pass.

    Returns:
        Indices of the episodes of every group, neighbours in ``sizes``.
    """
    # For the first n episodes: what their best groups cost, and where the last of these groups starts.
    costs, starts = np.zeros(len(sizes) + 1, dtype=np.int64), [0]
    for end in range(1, len(sizes) + 1):
        longest = sizes[end - 1]
        first = max(0, end - max(1, limit // longest))
        totals = costs[first:end] + longest * np.arange(end - first, 0, -1)
        starts.append(first + int(totals.argmin()))
        costs[end] = overhead + totals.min()
    groups, end = [], len(sizes)
    while end:
        groups.append(list(range(starts[end], end)))
        end = starts[end]
    return groups[::-1]


def time_of(sizes: Sequence[int], *, overhead: int, gradient: bool) -> int:
    """Time of one pass over episodes of these sizes, in tokens of a pass without gradient."""
    return (GRADIENT_COST if gradient else 1) * (overhead + len(sizes) * max(sizes))
