r"""Exact comparison of two short answers, as text, as numbers and as lists of numbers.

- No tolerance: ``0.333`` is not 1/3, and ``3.14159`` is not pi. `ollm_rl.answers.quantities` says how numbers are read.
- ``2,5`` and ``0,75`` are decimals if they stand in an answer to a gold answer that is one number, else two numbers.
- A unit, currency or percent sign that one side leaves out does not count, and 25 % is also 0.25; two known units that
  differ make two answers differ.
- Lists without brackets and sets have no order; tuples, intervals and their brackets do.
"""

import re

from ollm_rl.answers.quantities import Quantity, read_quantity, split_unit

_LONE_COMMA = re.compile(r"(?<![\d.,])(\d+),(\d{1,2}|\d{4,})(?![\d.,])")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|textrm|mathbf|mbox|operatorname)\{([^{}]*)\}")
_CIRCLE = re.compile(r"\^ ?\{? ?\\circ ?\}?")
_BASE = re.compile(r"(\w+)_ ?\{?(\d+)\}?")
_RATIO = re.compile(r"\d+(?: ?: ?\d+)+")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]{3,}")
_SEQUENCE = re.compile(r"(\\\{|[\[({])?(.*?)(\\\}|[\])}])?", re.DOTALL)
_SPARE_SPACE = re.compile(r"(?<!\d) | (?!\d)")


def compare(answer: str, gold: str) -> bool | None:
    """Decide between two cleaned answers exactly, as text, numbers or lists of numbers; None where these do not tell.

    Args:
        answer: What `clean` made of an answer.
        gold: The same of the reference answer.
    """
    if answer == gold:
        return True
    units = split_unit(answer)[1], split_unit(gold)[1]
    answer, gold = _without_wrappers(answer), _without_wrappers(gold)
    if _same_text(answer, gold):
        return True
    wanted = read_quantity(gold)
    if wanted is not None:
        found = read_quantity(answer)
        if found is None:
            found = read_quantity(_LONE_COMMA.sub(r"\1.\2", answer))
        if found is not None:
            return _same_quantity(found, wanted)
        if "=" in answer:
            return _compare_equation(answer, wanted)
    based, gold_based = _BASE.fullmatch(answer), _BASE.fullmatch(gold)
    if based and gold_based:
        return based.groups() == gold_based.groups()
    if (based and wanted) or (gold_based and read_quantity(answer)):
        return False  # math-verify does not see a base
    if _RATIO.fullmatch(answer) and _RATIO.fullmatch(gold):
        return list(map(int, answer.split(":"))) == list(map(int, gold.split(":")))
    if _WORDS.fullmatch(answer) and _WORDS.fullmatch(gold):
        return False
    if all(units) and units[0] != units[1]:
        return False
    return _compare_sequences(answer, gold)


def _without_wrappers(text: str) -> str:
    r"""Take away ``\text{}`` and round brackets around one thing."""
    if "\\" in text:
        text = " ".join(_CIRCLE.sub(" degrees ", _TEXT.sub(r" \1 ", text)).split())
    if text[:1] == "(" and text[-1:] == ")" and not re.search(r"[(),]", text[1:-1]):
        text = text[1:-1].strip()
    return text


def _same_text(answer: str, gold: str) -> bool:
    answer, gold = _SPARE_SPACE.sub("", answer), _SPARE_SPACE.sub("", gold)
    # "sunday" is Sunday, but the variable X is not x.
    return answer == gold or (len(gold) > 1 and gold.isalpha() and answer.casefold() == gold.casefold())


def _same_quantity(one: Quantity, other: Quantity) -> bool:
    if one.unit and other.unit:
        return one == other
    if one.value == other.value:
        return True
    percents = [quantity.value / (100 if quantity.unit == "%" else 1) for quantity in (one, other)]
    return percents[0] == percents[1]


def _compare_equation(answer: str, wanted: Quantity) -> bool | None:
    """An equation answers with its right side; one between numbers has to be true."""
    *lefts, right = (part.strip() for part in answer.split("="))
    found = read_quantity(right)
    if found is None:
        return None
    for left in lefts:
        number = read_quantity(left)
        if number is not None and not _same_quantity(number, found):
            return False
        # "x + 5 = 7" answers nothing; "f(2) = 7" does: math-verify tells them apart as well as can be.
        if number is None and re.search(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", left) and re.search(r"\d", left):
            return None
    return _same_quantity(found, wanted)


def _compare_sequences(answer: str, gold: str) -> bool | None:
    """Sets, lists, tuples and intervals of numbers; of anything else only their brackets are compared."""
    brackets, items = _sequence(answer)
    gold_brackets, gold_items = _sequence(gold)
    if len(items) < 2:
        return None
    if brackets and gold_brackets and brackets != gold_brackets:
        return False if len(items) == len(gold_items) else None
    found, wanted = ([read_quantity(item) for item in part] for part in (items, gold_items))
    values = [quantity.value for quantity in found if quantity]
    gold_values = [quantity.value for quantity in wanted if quantity]
    if len(values) < len(items) or not gold_values or len(gold_values) < len(gold_items):
        return None
    if brackets == gold_brackets and brackets not in ("", "{}"):
        return values == gold_values
    if {brackets, gold_brackets} <= {"", "{}"}:
        return set(values) == set(gold_values)
    return None


def _sequence(text: str) -> tuple[str, list[str]]:
    """Brackets, such as ``(]``, and comma-separated items; no items where the commas may mean something else."""
    match = _SEQUENCE.fullmatch(text)
    assert match is not None
    opening, inner, closing = match.groups("")
    brackets = (opening + closing).replace("\\", "")
    if re.search(r"[()\[\]]|\\[{}]", inner) or (not brackets and re.search(r"\d,\d{3}(?!\d)", inner)):
        return brackets, []
    return brackets, [item.strip() for item in inner.split(",")]
