r"""Numbers in every usual spelling, with their units, as exact fractions.

How a number is read:

- ``1,234`` is 1234: a comma before groups of exactly three digits groups thousands. ``1.234`` is the decimal 1.234.
- What only one convention can mean is read in it: ``1,234.5``, ``1.234,5``, ``1.234.567``, ``1 234,5``.
- ``2,5`` is no number: it may be two.
- Number words count ("5 thousand", "2 dozen"); units are named, and nothing is converted.
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
_MAGNITUDE = re.compile(
    r"(?P<whole>\d+) ?(?:and ?)?"
    r"(?:\\frac\{(?P<top>\d+)\}\{(?P<bottom>\d+)\}|(?<=[ d])(?P<top2>\d+) ?/ ?(?P<bottom2>\d+))"
    rf"|\\frac\{{ ?(?P<above>-?{_NUMBER}) ?\}}\{{ ?(?P<below>-?{_NUMBER}) ?\}}"
    rf"|(?P<number>{_NUMBER})(?: ?/ ?(?P<divisor>-?{_NUMBER}))?"
)
_EXPONENT = re.compile(r"[eE]([+-]?\d{1,3})(?![\w.])| ?(?:\\times|\\cdot|\*|x) ?10 ?\^ ?\{?([+-]?\d{1,3})\}?(?!\d)")
_POWER_OF_TEN = re.compile(r"10 ?\^ ?(?:\{([+-]?\d{1,3})\}|(\d))(?!\d)")
_START = re.compile(r"([+-]?) ?(?:(?:US)?([$€£¥])|(USD|EUR|GBP) ?(?=[\d.+-]))? ?([+-]?) ?")
_INLINE = re.compile(r"(?<!\\)\$([^$]+)(?<!\\)\$(?=[\s.,]|$)")

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
_CHANGING = """
    and or to ni pi sqrt not half halves third thirds quarter quarters fourths fifths tenth tenths hundredth hundredths
    sin cos tan log ln exp mod plus minus times over squared cubed infinity percent
"""
_CHANGING_WORDS = frozenset([*_CHANGING.split(), *_SCALES])
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
    text = answer.strip().strip("`").removeprefix(r"\approx").lstrip()
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
    if _UNKNOWN_UNIT.fullmatch(text) and _CHANGING_WORDS.isdisjoint(re.split("[ -]", text)):
        return scale, ""
    if len(parts) == 2 and all(name or _UNKNOWN_UNIT.fullmatch(part) for name, part in zip(known, parts, strict=True)):
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
