"""Reads forms with several numbers that equal none of them: ratios, ranges, times, dates, numerals in a base."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from ollm_rl.answers.number_words import read_number_words
from ollm_rl.answers.quantities import Quantity, read_quantity
from ollm_rl.answers.units import read_unit

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t|tember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)"
)
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_DATE = re.compile(
    rf"(\d{{4}})[-/](\d\d?)[-/](\d\d?)|({MONTH})\.? (?:the )?{_DAY}(?:,? (\d{{4}}))?"
    rf"|(?:the )?{_DAY} (?:of )?({MONTH})\.?(?:,? (\d{{4}}))?",
    re.IGNORECASE,
)
_TIME = re.compile(r"(\d{1,2})(?::(\d\d))?(?::(\d\d))? ?(?:o'clock|noon|([ap])\.? ?m\.?)", re.IGNORECASE)
_NUMBER = r"\d+(?:\.\d+)?"
_RATIO = re.compile(rf"{_NUMBER}(?: ?: ?{_NUMBER})+")
_TO = re.compile(rf"(?:from )?({_NUMBER}) to ({_NUMBER})(?: to ({_NUMBER}))?(.*)")
_RANGE = re.compile(rf"({_NUMBER}) ?--? ?({_NUMBER})(.*)")
_SHARE = re.compile(r"(\d+) (?:out of|in) (\d+)")
_ROW = re.compile(r"\d+([-/])\d+(?:\1\d+)+")  # 30-11-2022
_BASE = re.compile(r"\(?((?=[A-Za-z]*\d)\w{1,100})\)?(?:_ ?\{? ?\(?(\w+)\)? ?\}?|,? \(?(?:in )?base[- ](\w+)\)?)")


class Form(NamedTuple):
    """A kind and its numbers.

    The kinds: ``date`` (month, day, year if given), ``time`` (hour of the day, minute, second), ``ratio``, ``range``,
    ``to`` (a ratio or a range), ``share`` ("3 out of 8"), ``row`` (other numbers with hyphens or slashes) and ``base``
    (value of the digits in base 36, base). "3:30" is a ratio.
    """

    kind: str
    parts: tuple[Fraction, ...]


def read_form(text: str) -> Form | None:
    """The form of a cleaned text; None if it has none."""
    if match := _DATE.fullmatch(text):
        year, month, day, first, date, last, other_date, second, later = match.groups()
        number = int(month) if month else _MONTHS.index((first or second)[:3].casefold()) + 1
        return _form("date", [number, day or date or other_date, year or last or later])
    if match := _TIME.fullmatch(text):
        hour, minute, second, half = match.groups()
        after_noon = {"a": -12 * (int(hour) == 12), "p": 12 * (int(hour) != 12)}.get((half or "").casefold(), 0)
        return _form("time", [int(hour) + after_noon, minute or 0, second or 0])
    if _RATIO.fullmatch(text):
        return _form("ratio", text.replace(" ", "").split(":"))
    if match := _SHARE.fullmatch(text):
        return _form("share", match.groups())
    for kind, pattern in (("to", _TO), ("range", _RANGE)):
        if (match := pattern.fullmatch(text)) and read_unit(match.groups()[-1]) is not None:
            return _form(kind, match.groups()[:-1])
    if match := _ROW.fullmatch(text):
        return _form("row", text.split(match[1]))
    if (match := _BASE.fullmatch(text)) and match[1].isascii() and match[1].isalnum():
        words = read_number_words(match[2] or match[3])
        base = words[0] if words else match[2] or match[3]
        return _form("base", [int(match[1], 36), base]) if str(base).isdecimal() else None
    return None


def compare_forms(answer: str, gold: str) -> bool | None:
    """Whether two cleaned texts have equal forms; None if neither has one, or one has none and is not a number."""
    one, other = read_form(answer), read_form(gold)
    if one and other:
        return _same_form(one, other)
    form, number = (one, read_quantity(gold)) if one else (other, read_quantity(answer))
    return None if form is None or number is None else _is_number(form, number)


def _form(kind: str, parts: Sequence[object]) -> Form:
    return Form(kind, tuple(Fraction(str(part)) for part in parts if part is not None))


def _same_form(one: Form, other: Form) -> bool:
    kinds = {one.kind, other.kind}
    if kinds == {"time", "ratio"}:
        time, clock = (one, other) if one.kind == "time" else (other, one)
        same_hour = clock.parts[0] in (time.parts[0], time.parts[0] % 12 or 12)
        return same_hour and (*clock.parts[1:], 0)[:2] == time.parts[1:]
    if kinds == {"date"}:  # only the parts that both have
        return all(part == other_part for part, other_part in zip(one.parts, other.parts, strict=False))
    return (len(kinds) == 1 or kinds in ({"to", "ratio"}, {"to", "range"})) and one.parts == other.parts


def _is_number(form: Form, number: Quantity) -> bool:
    """Whether a form equals a number: 3:4 is 3/4 (but 2:1 is not 2), 5 o'clock is 5."""
    if form.kind == "ratio" and len(form.parts) == 2 and form.parts[1]:
        return number.value.denominator > 1 and form.parts[0] / form.parts[1] == number.value
    if form.kind == "share":  # "3 out of 8" is 3/8
        return bool(form.parts[1]) and form.parts[0] / form.parts[1] == number.value
    return form.kind == "time" and not any(form.parts[1:]) and number.value in (form.parts[0], form.parts[0] % 12)
