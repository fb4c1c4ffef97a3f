"""Colours of figures (Okabe and Ito 2008), in which the policies over options and the vocabulary look alike in all."""

from collections.abc import Iterable

SIDES = {"latent": "#0072b2", "anchored": "#009e73", "vocabulary": "#d55e00"}
OTHERS = ("#56b4e9", "#e69f00", "#cc79a7", "#000000", "#f0e442")
GREY = "#555555"  # where these do not suffice


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: that of its side, else the next of the others."""
    others = iter(OTHERS)
    return {name: SIDES[name] if name in SIDES else next(others, GREY) for name in names}
