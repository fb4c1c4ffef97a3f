"""Which episodes share a pass of an update: those of similar length, so that little is computed on padding."""

import math
from collections.abc import Sequence


def grouped(sizes: Sequence[int], *, limit: float, overhead: int) -> list[list[int]]:
    """Groups of episodes that take the least time, each padded to its longest.

    A group of n episodes takes ``overhead`` and n times the longest one's size.

    Args:
        sizes: Tokens of every episode, ascending.
        limit: Maximum of n times the longest one's size; an episode beyond it is a group of its own.
        overhead: Tokens that take as long as what every pass takes whatever its size.

    Returns:
        Indices of the episodes of every group, neighbours in ``sizes``.
    """
    costs, starts = [0.0], [0]  # of the best groups of the first n episodes, and where the last group starts
    for end in range(1, len(sizes) + 1):
        longest, best = sizes[end - 1], (math.inf, end)
        for start in range(end - 1, -1, -1):
            padded = longest * (end - start)
            if padded > limit and start < end - 1:
                break
            best = min(best, (costs[start] + overhead + padded, start))
        costs.append(best[0])
        starts.append(best[1])
    groups, end = [], len(sizes)
    while end:
        groups.append(list(range(starts[end], end)))
        end = starts[end]
    return groups[::-1]
