"""Numbers as pages and tables write them."""

import math
from typing import Any

MISSING = "–"


def number(value: Any) -> float:
    """A value as a number, None as NaN."""
    return math.nan if value is None else float(value)


def percent(share: Any, unit: str = " %") -> str:
    """A share in per cent, with one decimal."""
    value = number(share)
    return MISSING if math.isnan(value) else f"{100 * value:.1f}{unit}"


def count(value: Any) -> str:
    """A number of episodes or seconds: a whole number, or one decimal if it is below 10 and not whole."""
    known = number(value)
    if math.isnan(known):
        return MISSING
    return f"{known:,.0f}" if known >= 10 or known == int(known) else f"{known:.1f}"


def seeds(number_of_seeds: int) -> str:
    """What a number is the result of."""
    return "one seed" if number_of_seeds == 1 else f"mean of {number_of_seeds} seeds"
