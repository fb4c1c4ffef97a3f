"""Intervals of results, ``[value, low, high]``, as cells of tables."""

from collections.abc import Sequence

from ollm_rl.report.tables import Estimate


def scaled(interval: Sequence[float], factor: float = 100, digits: int = 1) -> Estimate:
    """A cell of an interval that is multiplied by ``factor``; a share in per cent by default."""
    value, low, high = (factor * number for number in interval)
    return Estimate(value, low, high, digits)
