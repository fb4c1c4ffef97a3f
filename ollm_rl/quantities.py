r"""Exact comparison of short answers: numbers in every usual spelling, with their units, and lists of them.

How a number is read:

- ``1,234`` is 1234: a comma before groups of exactly three digits groups thousands. ``1.234`` is the decimal 1.234.
- What only one convention can mean is read in it: ``1,234.5``, ``1.234,5``, ``1.234.567``, ``1 234,5``.
- ``2,5`` and ``0,75`` are decimals if they stand in an answer to a gold answer that is one number, else two numbers.
- No tolerance: ``0.333`` is not 1/3, and ``3.14159`` is not pi.
- A unit, currency or percent sign that one side leaves out does not count, and 25 % is also 0.25; two known units that
  differ make two answers differ. Nothing is converted but percents and number words ("5 thousand", "2 dozen").
"""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

_SYMBOLS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/",
        "°": r"^\circ ", "∞": r"\infty ", "π": r"\pi ", "∅": r"\emptyset ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "≤": r"\le ", "≥": r"\ge ", "±": r"\pm ", "٫": ".", "٬": ",",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    }
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_DELIMITERS = re.compile(r"\$\$(.*)\$\$|\$([^$]*)\$|\\[(\[](.*)\\[)\]]|\*\*(.*)\*\*|\{([^{},\\]*)\}", re.DOTALL)
_SPACING = re.compile(r"(?<!\\)\\[,;: ]|~|\\quad\b")
_DROPPED = re.compile(r"(?<!\\)\\!|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle\b|\*\*")
_SHORT_FRACTION = re.compile(r"\\frac ?(?:\{([^{}]*)\}|(\d)) ?(?:\{([^{}]*)\}|(\d))")
_OVER = re.compile(r"\{? ?(\d+) ?\\over ?(\d+) ?\}?")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|textrm|mathbf|mbox|operatorname)\{([^{}]*)\}")
_CIRCLE = re.compile(r"\^ ?\{? ?\\circ ?\}?")

_DEGREES = re.compile(r"(\d+(?:\.\d+)?) ?\^ ?\{? ?\\circ ?\}?")
_TRAILING_UNIT = re.compile(
    r"(?:\\(?:text|mbox|mathrm|textrm)\{ ?([^{}]*?) ?\}| ((?:(?:square|cubic|sq|cu)\.? )?[A-Za-z]{2,}))"
    r"(?: ?\^ ?\{?([23])\}?)?$"
)
_DIGITS = r"\d{1,4000}"  # int() refuses more than 4,300
_PLAIN = re.compile(rf"-?{_DIGITS}(?:\.\d{{1,4000}})?")
_NUMBER = (
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}(?!\d)"
    r"|\d{1,3}(?: \d{3})+(?!\d)(?:[.,]\d+)?|\d+\.?\d*|\.\d+)"
)
_LONE_COMMA = re.compile(r"(?<![\d.,])(\d+),(\d{1,2}|\d{4,})(?![\d.,])")
_MAGNITUDE = re.compile(
    r"(?P<whole>\d+) ?(?:and ?)?(?:\\frac\{(?P<top>\d+)\}\{(?P<bottom>\d+)\}|(?<=[ d])(?P<top2>\d+) ?/ ?(?P<bottom2>\d+))"
    rf"|\\frac\{{ ?(?P<above>-?{_NUMBER}) ?\}}\{{ ?(?P<below>-?{_NUMBER}) ?\}}"
    rf"|(?P<number>{_NUMBER})(?: ?/ ?(?P<divisor>-?{_NUMBER}))?"
)
_EXPONENT = re.compile(r"[eE]([+-]?\d{1,3})(?![\w.])| ?(?:\\times|\\cdot|\*|x) ?10 ?\^ ?\{?([+-]?\d{1,3})\}?(?!\d)")
_POWER_OF_TEN = re.compile(r"10 ?\^ ?(?:\{([+-]?\d{1,3})\}|(\d))(?!\d)")
_START = re.compile(r"([+-]?) ?(?:(?:US)?([$€£¥])|(USD|EUR|GBP) ?(?=[\d.+-]))? ?([+-]?) ?")
_BASE = re.compile(r"(\w+)_ ?\{?(\d+)\}?")
_RATIO = re.compile(r"\d+(?: ?: ?\d+)+")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]{3,}")
_SPARE_SPACE = re.compile(r"(?<!\d) | (?!\d)")
_INLINE = re.compile(r"(?<!\\)\$([^$]+)(?<!\\)\$(?=[\s.,]|$)")
_SEQUENCE = re.compile(r"(\\\{|[\[({])?(.*?)(\\\}|[\])}])?", re.DOTALL)

_SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "mil": 1000, "millón": 10**6, "millones": 10**6, "docena": 12, "docenas": 12,
}  # fmt: skip
_UNIT_NAMES = {
    "$": "$ usd dollar dollars", "€": "€ eur euro euros", "£": "£ gbp", "¥": "¥ yen", "cent": "¢ cent cents",
    "%": "% percent", "degree": "degree degrees deg",
    "mm": "mm millimeter millimeters millimetre millimetres", "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres", "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard yards", "mi": "mi mile miles",
    "mg": "mg milligram milligrams", "g": "g gram grams", "kg": "kg kilogram kilograms kilo kilos",
    "lb": "lb lbs", "oz": "oz ounce ounces", "ml": "ml milliliter milliliters", "l": "l liter liters litre litres",
    "s": "s sec secs second seconds", "min": "min mins minute minutes", "h": "h hr hrs hour hours",
    "day": "day days", "week": "week weeks", "month": "month months", "year": "year years yr yrs",
    "mi/h": "mph", "km/h": "kph kmh",
}  # fmt: skip
_UNITS = {alias: name for name, aliases in _UNIT_NAMES.items() for alias in aliases.split()}
# Words that change a number instead of giving it a unit.
_NO_UNITS = frozenset(
    "and or to ni pi sqrt not half halves third thirds quarter quarters fourths fifths tenth tenths hundredth hundredths "
    "sin cos tan log ln exp mod plus minus times over squared cubed infinity percent".split()
) | frozenset(_SCALES)
_UNKNOWN_UNIT = re.compile(r"[^\W\d_]{2,}(?:[ -][^\W\d_]{2,}){0,2}")
_POWERED = re.compile(r"(square|sq|cubic|cu)\.? (.+)|(.+?) ?(?:\^ ?\{?([23])\}?| (squared|cubed))")


class Quantity(NamedTuple):
    """An exact number with its unit: a known unit's name, or empty where it has none or an unknown one."""

    value: Fraction
    unit: str


def clean(answer: str) -> str:
    r"""One spelling for what LaTeX and Unicode write in several ways; the meaning stays.

    Takes away the delimiters of mathematics, a full stop and spacing commands; writes signs as commands, all digits as
    ASCII, ``\dfrac12`` as ``\frac{1}{2}``, ``1{,}000`` as ``1,000``.
    """
    text = answer.strip()
    while text:  # delimiters may stand in each other; every round shortens the text
        inner = text[:-1].rstrip() if text[-1] == "." else text
        if match := _DELIMITERS.fullmatch(inner):
            inner = next(group for group in match.groups() if group is not None).strip()
        if inner == text:
            break
        text = inner
    if "$" in text:
        text = _INLINE.sub(r"\1", text)
    if not text.isascii():
        text = _ascii_signs(text)
    if "\\" in text or "{" in text or "~" in text or "*" in text:
        text = text.replace("{,}", ",").replace("{.}", ".").replace(r"\$", "$").replace(r"\%", "%")
        text = _SPACING.sub(" ", _DROPPED.sub("", text)).replace(r"\varnothing", r"\emptyset")
        text = re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", text)
        text = _OVER.sub(r"\\frac{\1}{\2}", _SHORT_FRACTION.sub(_long_fraction, text))
    return " ".join(text.split())


def compare(answer: str, gold: str) -> bool | None:
    """Decide between two cleaned answers exactly, as text, numbers or lists of numbers; None where these do not tell.

    Args:
        answer: What `clean` made of an answer.
        gold: The same of the reference answer.
    """
    if answer == gold:
        return True
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
    units = split_unit(answer)[1], split_unit(gold)[1]
    if all(units) and units[0] != units[1]:
        return False
    return _compare_sequences(answer, gold)


def read_quantity(text: str) -> Quantity | None:
    """The exact number that a cleaned text is, or None if it is something else."""
    if _PLAIN.fullmatch(text):
        return Quantity(Fraction(text), "")
    start = _START.match(text)
    assert start is not None  # all of it is optional
    first_sign, symbol, code, second_sign = start.groups("")
    found = _read_magnitude(text[start.end() :])
    if found is None or (first_sign and second_sign):
        return None
    value, suffix = found
    measure = _read_unit(suffix)
    if measure is None:
        return None
    scale, unit = measure
    currency = _UNITS.get((symbol or code).casefold(), "")
    if currency and unit and currency != unit:
        return None
    sign = -1 if "-" in (first_sign, second_sign) else 1
    return Quantity(sign * scale * value, currency or unit)


def split_unit(text: str) -> tuple[str, str]:
    r"""A cleaned expression without the unit at its end, degrees as radians, and the unit's name if it is known.

    What stands in ``\text{}`` at the end is taken for a unit, a bare word only if it is a known one.
    """
    if "circ" in text and re.search("sin|cos|tan|cot|sec|csc", text):
        text = _DEGREES.sub(r"\\frac{\1 \\pi}{180}", text)
    match = _TRAILING_UNIT.search(text)
    if match is None or not text[: match.start()].strip():
        return text, ""
    wrapped, bare, power = match.groups()
    name = _known_unit((wrapped or bare or "").casefold() + (f"^{power}" if power else ""))
    return (text, "") if wrapped is None and name is None else (text[: match.start()].rstrip(), name or "")


def _ascii_signs(text: str) -> str:
    characters = []
    for character in text.translate(_SYMBOLS):
        if character.isdecimal():
            character = str(int(character))
        elif unicodedata.category(character) == "No" and "FRACTION" in unicodedata.name(character, ""):
            character = " " + unicodedata.normalize("NFKC", character).replace("⁄", "/")
        characters.append(character)
    return _SUPERSCRIPT_RUN.sub(lambda run: f"^{{{run.group().translate(_SUPERSCRIPTS)}}}", "".join(characters))


def _long_fraction(match: re.Match[str]) -> str:
    top, top_digit, bottom, bottom_digit = match.groups()
    return rf"\frac{{{top_digit if top is None else top}}}{{{bottom_digit if bottom is None else bottom}}}"


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


def _read_magnitude(text: str) -> tuple[Fraction, str] | None:
    """The number at the start of a text, without sign, and what follows it."""
    if match := _POWER_OF_TEN.match(text):
        return Fraction(10) ** int(match[1] or match[2]), text[match.end() :]
    match = _MAGNITUDE.match(text)
    if match is None or match.end() > 4000:
        return None
    groups = match.groupdict()
    if groups["whole"] is not None:
        top, bottom = int(groups["top"] or groups["top2"]), int(groups["bottom"] or groups["bottom2"])
        if not 0 < top < bottom:  # "2 7/3" is no mixed number
            return None
        value = int(groups["whole"]) + Fraction(top, bottom)
    else:
        divisor = _read_digits(groups["below"] or groups["divisor"] or "1")
        if divisor == 0:
            return None
        value = _read_digits(groups["above"] or groups["number"]) / divisor
    rest = text[match.end() :]
    if exponent := _EXPONENT.match(rest):
        value *= Fraction(10) ** int(exponent[1] or exponent[2])
        rest = rest[exponent.end() :]
    return value, rest


def _read_digits(text: str) -> Fraction:
    """Value of a `_NUMBER` with a sign or none."""
    text = text.replace(" ", "")
    if re.fullmatch(r"-?\d{1,3}(?:\.\d{3})+,\d+|-?\d+,(?!\d{3}(?!\d))\d+", text) or text.count(".") > 1:
        text = text.replace(".", "").replace(",", ".")
    return Fraction(text.replace(",", ""))


def _read_unit(text: str) -> tuple[int, str] | None:
    """Factor and name of what follows a number: empty for an unknown unit, None for what is no unit."""
    if re.match("[A-Za-z](?![A-Za-z])", text):
        return None  # "5m" is a product, "5 m" a length
    text = text.strip()
    if not text:
        return 1, ""
    scale = 1
    first, _, rest = text.partition(" ")
    if first.casefold() in _SCALES:
        scale, text = _SCALES[first.casefold()], rest.strip()
        if not text:
            return scale, ""
    text = text.casefold()
    parts = re.split(r" ?/ ?| per ", text)
    known = [_known_unit(part) for part in parts]
    if all(known):
        return scale, "/".join(str(name) for name in known)
    if _UNKNOWN_UNIT.fullmatch(text) and not _NO_UNITS.intersection(re.split("[ -]", text)):
        return scale, ""
    if len(parts) == 2 and all(
        name or _UNKNOWN_UNIT.fullmatch(part) for name, part in zip(known, parts, strict=True)
    ):
        return scale, ""
    return None


def _known_unit(text: str) -> str | None:
    if text in _UNITS:
        return _UNITS[text]
    match = _POWERED.fullmatch(text)
    if match is None:
        return None
    before, base, base2, power, after = match.groups()
    name = _UNITS.get(base or base2)
    cubed = power == "3" or before in ("cubic", "cu") or after == "cubed"
    return name and f"{name}^{3 if cubed else 2}"


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
