r"""Reads numbers in every usual spelling, with their units, as exact fractions.

How a number is read:

- ``1,234`` is 1234: a comma before groups of exactly three digits groups thousands. ``1.234`` is the decimal 1.234.
- Spellings that only one convention allows are read by it: ``1,234.5``, ``1.234,5``, ``1.234.567``, ``1 234,5``,
  ``1,00,000``.
- ``2,5`` is not read, because it may be two numbers.
- Number words count ("5 thousand", "two dozen"). Units are named; only the parts of one quantity are converted
  ("2 hours 30 minutes").
"""

import re
from fractions import Fraction
from typing import NamedTuple

from ollm_rl.answers.number_words import SCALES, read_number_words, read_part
from ollm_rl.answers.units import currency, read_unit, share

_DIGITS = r"\d{1,4000}"  # int() refuses more than 4,300
_PLAIN = re.compile(rf"-?{_DIGITS}(?:\.\d{{1,4000}})?")
_NUMBER = (
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}(?!\d)"
    r"|\d{1,3}(?: \d{3})+(?!\d)(?:[.,]\d+)?|\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])|\d{1,3}(?:'\d{3})+(?!\d)"
    r"|\d+\.?\d*|\.\d+)"
)
_MAGNITUDE = re.compile(
    r"(?P<whole>\d+) ?(?:and ?)?"
    r"(?:\\frac\{(?P<top>\d+)\}\{(?P<bottom>\d+)\}|(?<=[ d])(?P<top2>\d+) ?/ ?(?P<bottom2>\d+))"
    rf"|\\frac\{{ ?(?P<above>-?{_NUMBER}) ?\}}\{{ ?(?P<below>-?{_NUMBER}) ?\}}"
    rf"|(?P<number>{_NUMBER})(?: ?/ ?(?P<divisor>-?{_NUMBER}))?"
)
_EXPONENT = re.compile(r"[eE]([+-]?\d{1,3})(?![\w.])| ?(?:\\times|\\cdot|\*|x) ?10 ?\^ ?\{?([+-]?\d{1,3})\}?(?!\d)")
_POWER_OF_TEN = re.compile(r"10 ?\^ ?(?:\{([+-]?\d{1,3})\}|(\d))(?!\d)")
_START = re.compile(
    r"([+-]?) ?(?:([A-Z]{0,3}(?![\d.+-])[^\w\s.+\\({\[|/-]|[Rr]s\.?|[A-Z]{3}(?= ?[\d.+-])) ?)?([+-]?) ?"
)
_SCALE = re.compile(r" ?([^\W\d_]{2,}|[百千万亿])")
_BEFORE_PART = re.compile(r"(?:,? and |, | |(?<=[^\W\d_]))(?=\d)")


class Quantity(NamedTuple):
    """An exact number with the name of its unit, which is empty if it has none or an unknown one."""

    value: Fraction
    unit: str


def read_quantity(text: str) -> Quantity | None:
    """The exact number that a cleaned text is, or None if it is something else."""
    if _PLAIN.fullmatch(text):
        return Quantity(Fraction(text), "")
    return _read_one(text) or _read_parts(text)


def _read_one(text: str) -> Quantity | None:
    start = _START.match(text)
    assert start is not None  # all of it is optional
    first_sign, sign, second_sign = start.groups("")
    money = currency(sign) if sign else ""
    found = _read_magnitude(text[start.end() :])
    if money is None or found is None or (first_sign and second_sign):
        return None
    value, suffix = found
    scale = _SCALE.match(suffix)
    if scale and (factor := SCALES.get(scale[1].casefold())):
        value, suffix = value * factor, suffix[scale.end() :]
    unit = currency(suffix.strip()) or read_unit(suffix)
    if unit is None or (money and unit and unit != money and not unit.startswith("/")):
        return None
    value = -value if "-" in (first_sign, second_sign) else value
    return Quantity(value, money + unit if unit.startswith("/") else money or unit)


def _read_parts(text: str) -> Quantity | None:
    """A quantity in two or three parts with ever smaller units, in the unit of the first."""
    parts = [_read_one(part) for part in _BEFORE_PART.split(text)]
    if not 2 <= len(parts) <= 3 or parts[0] is None:
        return None
    total, last = parts[0], parts[0].unit
    for part in parts[1:]:
        ratios = (share(last, part.unit), share(total.unit, part.unit)) if part and part.value >= 0 else (None, None)
        if part is None or ratios[0] is None or ratios[1] is None:
            return None
        total, last = Quantity(total.value + ratios[1] * part.value, total.unit), part.unit
    return total


def _read_magnitude(text: str) -> tuple[Fraction, str] | None:
    """The number without a sign at the start of a text, and the text after it."""
    if match := _POWER_OF_TEN.match(text):
        return Fraction(10) ** int(match[1] or match[2]), text[match.end() :]
    match = _MAGNITUDE.match(text)
    if match is None:
        return read_number_words(text)
    if match.end() > 4000:
        return None
    groups = match.groupdict()
    if groups["whole"] is not None:
        top, bottom = int(groups["top"] or groups["top2"]), int(groups["bottom"] or groups["bottom2"])
        if not 0 < top < bottom:  # "2 7/3" is no mixed number
            return None
        value = int(groups["whole"]) + Fraction(top, bottom)
    else:
        divisor = _read_digits(groups["below"] or groups["divisor"] or "1")
        if not divisor:
            return None
        value = _read_digits(groups["above"] or groups["number"]) / divisor
    rest = text[match.end() :]
    part, end = read_part(rest, 0)
    if part:
        return value + part, rest[end:]
    if exponent := _EXPONENT.match(rest):
        value *= Fraction(10) ** int(exponent[1] or exponent[2])
        rest = rest[exponent.end() :]
    return value, rest


def _read_digits(text: str) -> Fraction:
    """Value of a `_NUMBER`, which may have a sign."""
    text = text.replace(" ", "").replace("'", "")
    if re.fullmatch(r"-?\d{1,3}(?:\.\d{3})+,\d+|-?\d+,(?!\d{3}(?!\d))\d+", text) or text.count(".") > 1:
        text = text.replace(".", "").replace(",", ".")
    return Fraction(text.replace(",", ""))
