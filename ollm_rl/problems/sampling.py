"""A seeded sample of items that need not fit into memory."""

import heapq
from collections.abc import Iterable
from typing import TypeVar

from ollm_rl.streams import Purpose, numpy_generator

T = TypeVar("T")


def seeded_sample(items: Iterable[T], limit: int | None, seed: int) -> list[T]:
    """A uniform sample without replacement, in the order of the items; all of them if there are no more than ``limit``.

    One pass that holds at most ``limit`` items. The sample of a smaller limit is a part of that of a larger one.
    """
    if limit is None:
        return list(items)
    generator = numpy_generator(seed, Purpose.PROBLEM_SAMPLE)
    drawn = heapq.nsmallest(limit, ((generator.random(), index, item) for index, item in enumerate(items)))
    return [item for _, _, item in sorted(drawn, key=lambda entry: entry[1])]
