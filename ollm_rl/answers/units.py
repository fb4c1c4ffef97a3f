"""Reads units of measure after a number. Only the parts of one quantity ("2 hours 30 minutes") are converted."""

import functools
import re
import unicodedata
from collections import Counter
from fractions import Fraction

from ollm_rl.answers.number_words import NUMBER_WORDS

# The name of each unit here, and its spellings. Case matters only in names of one letter.
_NAMES = {
    "$": "usd us$ dollar dollars buck bucks", "€": "eur euro euros", "£": "gbp", "¥": "yen jpy 日元",
    "₹": "inr rs rupee rupees", "cent": "¢ cents", "%": "percent", "degree": "° degrees deg", "°C": "celsius",
    "°F": "fahrenheit", "mm": "millimeter millimeters millimetre millimetres 毫米",
    "cm": "centimeter centimeters centimetre centimetres 厘米", "m": "meter meters metre metres 米",
    "km": "kilometer kilometers kilometre kilometres 千米 公里", "in": "inch inches", "ft": "foot feet",
    "yd": "yard yards", "mi": "mile miles", "mg": "milligram milligrams 毫克", "g": "gram grams gm 克",
    "kg": "kilogram kilograms kilo kilos 千克 公斤", "lb": "lbs pound pounds", "oz": "ounce ounces",
    "ml": "milliliter milliliters millilitre millilitres 毫升", "l": "L liter liters litre litres 升",
    "s": "sec secs second seconds 秒", "min": "mins minute minutes 分钟", "h": "hr hrs hour hours 小时",
    "day": "days 天", "week": "weeks", "month": "months", "year": "years yr yrs", "decade": "decades",
    "century": "centuries", "cup": "cups", "pint": "pints", "quart": "quarts", "tablespoon": "tablespoons tbsp",
    "teaspoon": "teaspoons tsp", "acre": "acres", "bar": "", "atm": "", "psi": "", "knot": "knots", "rpm": "",
    "peso": "pesos", "yuan": "元", "N": "newton newtons",
    "J": "joule joules", "W": "watt watts", "V": "volt volts", "A": "amp amps ampere amperes", "K": "kelvin",
    "kr": "krona kronor krone kroner", "C": "coulomb coulombs", "T": "tesla", "Hz": "hertz", "Pa": "pascal pascals",
    "mol": "mole moles", "cal": "calorie calories", "gal": "gallon gallons", "bit": "bits", "byte": "bytes",
    "ha": "hectare hectares", "dB": "decibel decibels", "Wh": "", "eV": "",
    "rad": "radian radians", "‰": "permille", "Ω": "ohm ohms", "mi/h": "mph", "km/h": "kph kmh", "": "unit units",
}  # fmt: skip
_BY_NAME = {alias: name for name, aliases in _NAMES.items() for alias in (name, *aliases.split()) if alias}
_BY_NAME |= {alias.casefold(): name for alias, name in _BY_NAME.items() if len(alias) > 1}
_BY_NAME |= {
    f"{prefix}{unit}": f"{prefix}{unit}"
    for prefixes, units in (("kMGTmμn", "J N W V Pa Hz eV A F Ω Wh cal mol B"), ("μn", "m g s"))
    for prefix in prefixes
    for unit in units.split()
}
_CODES = ("AUD", "BRL", "CAD", "CHF", "CNY", "HKD", "KRW", "MXN", "NZD", "PLN", "RMB", "RUB", "SEK", "SGD", "ZAR")
# Parts of one quantity ("2 hours 30 minutes"), by the number of the smallest.
_FAMILIES = (
    {"week": 7 * 86400, "day": 86400, "h": 3600, "min": 60, "s": 1},
    {"century": 1200, "decade": 120, "year": 12, "month": 1},
    {"mi": 63360, "yd": 36, "ft": 12, "in": 1}, {"km": 10**6, "m": 1000, "cm": 10, "mm": 1}, {"lb": 16, "oz": 1},
    {"kg": 10**6, "g": 1000, "mg": 1}, {"l": 1000, "ml": 1}, {"gal": 16, "quart": 4, "pint": 2, "cup": 1},
    {"$": 100, "cent": 1}, {"€": 100, "cent": 1},
)  # fmt: skip
# Words that change a number, so that they do not name what it counts.
_CHANGING = """
    and or to ni pi sqrt not sin cos tan log ln exp mod plus minus over point root remainder most least
    under above below squared cubed infinity percent than past before after ago until factorial divided multiplied
    more mille basis less fewer if when choose base through between wrong incorrect false doubled
    tripled halved tens no none
    january february march april may june july august september october november december
"""
_CHANGING_WORDS = frozenset(_CHANGING.split()) | (NUMBER_WORDS - {"one"})
_TEXT = re.compile(r"\\text ?\{ ?((?:[^{}]|\{[^{}]*\})*)\}")
_DEGREES = re.compile(r"\^ ?(?:\\circ|\{ ?\\circ ?\})|\\degree")
_TEMPERATURE = re.compile(r"(?:° ?|\bdeg(?:rees?)? )([CF])(?:elsius|ahrenheit)?(?![a-z])", re.IGNORECASE)
_FACTOR = re.compile(
    r"(?:(?P<before>sq|cu)(?:uare|bic)?\.? )?(?P<name>°[CF]|[^\W\d_]+|[%‰¢°]|us\$)\.?"
    r"(?: ?\^ ?\{? ?(?P<power>-?[1-9]) ?\}?| (?P<after>squared|cubed))?(?: ?(?:\*|\\cdot|\\times) ?| |$)"
)
_RADIANS = re.compile(r"(\d+(?:\.\d+)?) ?\^ ?\{? ?\\circ ?\}?")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_UNIT_START = re.compile(r"(?<=[^ ]) ?\\text ?\{|(?<=[^ ]) (?=[A-Za-z]{2,})")
_UNITS_ONLY = re.compile(r" ?(?:square |cubic |sq\.? |cu\.? )?units?(?: ?\^ ?\{?[23]\}?)?")
_IN_BRACKETS = re.compile(r" ?\( ?([^()]*[^() .][^() .]) ?\)\.?")
_BARE = re.compile(r"( ?)([A-Za-z]+)(?![A-Za-z])")
_ORDINALS = ("st", "nd", "rd", "th")
_PER = re.compile(r" ?/ ?|(?:^| )(?:per|an?) ")
_WORD = r"(?:[^\W\d_]{2,}|[^\x00-\x7f])"
_WORDS = re.compile(rf"{_WORD}(?:[ '-]{_WORD}){{0,7}}\.?")


@functools.lru_cache(maxsize=4096)
def read_unit(text: str) -> str | None:
    """Name of the unit after a number: empty without a unit or for an unknown one, None if the text is not a unit.

    Products and powers of known units have one name in all spellings, such as ``m/s^2`` and ``m s^{-2}``.
    """
    bare = _BARE.match(text)
    space, word = bare.groups() if bare else ("", "")
    if bare and not space and len(word) == 1:
        return None  # "5m" is a product, "5 m" a length
    text = text.replace(r"\Omega", "Ω")
    is_whole = bare is not None and bare.end() == len(text)
    text = _DEGREES.sub("°", " ".join(_TEXT.sub(r" \1", text).split()).replace(r"\mu ", "μ"))
    text = text.replace("per cent", "percent")
    if (bracket := _IN_BRACKETS.fullmatch(text)) and _factors(bracket[1]) is not None:
        text = bracket[1]  # "7 (cm)", but "7(m)" is a product
    text = _TEMPERATURE.sub(lambda match: "°" + match[1].upper(), text)
    parts = _PER.split(text)
    factors = [_factors(part) for part in parts]
    if all(part is not None for part in factors) and (parts[-1] or len(parts) == 1):
        return _name([part for part in factors if part is not None])
    if is_whole and len(word) < (3 if space else 4) and word not in _ORDINALS:
        return None  # "5xy" and "5 xy" are products
    known = [factor is not None or is_unit_phrase(part) for factor, part in zip(factors, parts, strict=True)]
    if len(parts) > 1 and (not parts[-1] or (parts[-1].isascii() and len(parts[-1]) < 3 and factors[-1] is None)):
        return None  # "5/xy"
    return "" if all(known) and len(parts) < 3 else None


def split_unit(text: str) -> tuple[str, str]:
    r"""A cleaned expression without the unit at its end, degrees as radians, and the unit's name if it is known.

    What stands in ``\text{}`` at the end is taken for a unit, bare words only if they are known ones.
    """
    if "circ" in text and _TRIGONOMETRY.search(text):
        text = _RADIANS.sub(r"\\frac{\1 \\pi}{180}", text)
    for match in list(_UNIT_START.finditer(text))[-4:]:
        unit = text[match.start() :]
        name = read_unit(unit)
        if name or (name is not None and ("\\text" in unit or _UNITS_ONLY.fullmatch(unit))):
            return text[: match.start()].rstrip(), name
    return text, ""


def is_unit_phrase(text: str) -> bool:
    """Whether words name what a number counts: "pieces of cake each day", but not "more than twelve"."""
    return bool(_WORDS.fullmatch(text)) and _CHANGING_WORDS.isdisjoint(re.split("[ '-]", text.casefold().rstrip(".")))


def currency(sign: str) -> str | None:
    """Name of the currency with a sign such as ``$``, ``A$`` or ``EUR``; None for other signs."""
    name = _BY_NAME.get(sign.casefold().rstrip("."), sign)
    is_sign = len(name) <= 4 and unicodedata.category(name[-1:] or " ") == "Sc"
    return name if name in _CODES or (is_sign and (name[:-1].isalpha() or len(name) == 1)) else None


def share(larger: str, smaller: str) -> Fraction | None:
    """Number of larger units in one smaller unit, if both can be parts of one quantity; else None."""
    for family in _FAMILIES:
        if larger in family and smaller in family and family[larger] > family[smaller]:
            return Fraction(family[smaller], family[larger])
    return None


def _factors(text: str) -> list[tuple[str, int]] | None:
    """Units of a product, with their powers; None if one of them is unknown."""
    factors = []
    position = 0
    while position < len(text):
        match = _FACTOR.match(text, position)
        name = None if match is None else _known(match["name"])
        if match is None or name is None:
            return None
        power = int(match["power"] or 1) * {"squared": 2, "cubed": 3}.get(match["after"], 1)
        power *= {"sq": 2, "cu": 3}.get(match["before"], 1)
        factors += [(factor, -power if below else power) for below, factor in enumerate(name.split("/")) if factor]
        position = match.end()
    return factors


def _known(name: str) -> str | None:
    """The one name of a unit; the case of a single letter counts."""
    return _BY_NAME[name] if name in _BY_NAME else (_BY_NAME.get(name.casefold()) if len(name) > 1 else None)


def _name(factors: list[list[tuple[str, int]]]) -> str:
    """One name for a product: m/s^2, of the factors above and below the lines of division."""
    powers: Counter[str] = Counter()
    for below, part in enumerate(factors):
        for name, power in part:
            powers[name] += -power if below else power
    above, under = (
        [
            name + (f"^{abs(power)}" if abs(power) > 1 else "")
            for name, power in sorted(powers.items())
            if power * sign > 0
        ]
        for sign in (1, -1)
    )
    return "*".join(above) + "".join(f"/{name}" for name in under)
