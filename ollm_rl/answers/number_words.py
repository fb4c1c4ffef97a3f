"""Reads numbers in words: English, Chinese numerals, and small numbers in Spanish, French and German."""

import re
import unicodedata
from fractions import Fraction

_FROM_ZERO = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty",
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis diecisiete "
    "dieciocho diecinueve veinte",
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize",
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
    "achtzehn neunzehn zwanzig",
)
_SMALL = {word: value for words in _FROM_ZERO for value, word in enumerate(words.split())}
_TENS = ("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SMALL |= {word: 10 * tens for tens, word in enumerate(_TENS, 3)}
_LARGE = ("hundred", "thousand", "million", "billion")
# Also after digits: "5 million", "3万", "5 sixths".
SCALES: dict[str, int | Fraction] = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "quadrillion": 10**15,
    "lakh": 10**5, "crore": 10**7, "milliard": 10**9, "docena": 12, "douzaine": 12,
}  # fmt: skip
SCALES |= {f"{name}s": value for name, value in SCALES.items()} | {
    "dozen": 12, "mil": 1000, "millón": 10**6, "millones": 10**6, "milhão": 10**6, "milhões": 10**6, "mille": 1000,
    "tausend": 1000, "millionen": 10**6, "milliarden": 10**9, "dutzend": 12, "тысяча": 1000, "тысячи": 1000,
    "тысяч": 1000, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8,
}  # fmt: skip
_ORDINALS = (
    "half third quarter fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth"
)
_PARTS = {name: Fraction(1, number) for number, name in enumerate(_ORDINALS.split(), 2)}
_PARTS |= {f"{word[:-1]}ieth": Fraction(1, 10 * tens) for tens, word in enumerate(_TENS, 3)}
_PARTS |= {"fourth": Fraction(1, 4)} | {f"{name}th": Fraction(1, SCALES[name]) for name in _LARGE}
SCALES |= {f"{name}s": part for name, part in _PARTS.items() if name not in ("half", "quarter")}  # quarters are coins
SCALES["halves"] = _PARTS["half"]
_COUNT = f"an?|{'|'.join(_FROM_ZERO[0].split()[1:])}"
PART = rf"(?:{_COUNT})[ -](?:{'|'.join(_PARTS)})s?\b"  # after "and": "2 and a half"
_FRACTION = re.compile(rf"(?:({_COUNT})[ -])?({'|'.join(_PARTS)})s?\b", re.IGNORECASE)
_AND_PART = re.compile(rf" and (?={PART})", re.IGNORECASE)
NUMBER_WORDS = frozenset((*_SMALL, *SCALES, *_PARTS, *(f"{name}s" for name in _PARTS), "halves"))
_A_SCALE = re.compile(r"an?(?= (?:hundred|thousand|million|billion|dozen)\b)", re.IGNORECASE)
_WORD = re.compile(r"[ -]?([^\W\d_]+)")
# Only before a measure word: 三角形 is a triangle, not three of something.
_CHINESE = re.compile(
    "([零〇一二两三四五六七八九十百千万亿]{1,20})(?=$|[个只元块本张人条天岁支双对次台辆位名件份种米公厘小分秒])"
)


def read_number_words(text: str) -> tuple[Fraction, str] | None:
    """The number in words at the start of a text, and the text after it; None without one."""
    if match := _CHINESE.match(text):
        return Fraction(_read_chinese(match[1])), text[match.end() :]
    if (match := _FRACTION.match(text)) and (match[1] or match[2].casefold() == "half"):
        return _value_of_part(match), text[match.end() :]
    return _read_words(text)


def read_part(text: str, position: int) -> tuple[Fraction, int]:
    """The fraction in words after a number ("2 and three quarters"), 0 without one, and the position after it."""
    joint = _AND_PART.match(text, position)
    part = _FRACTION.match(text, joint.end()) if joint else None
    return (_value_of_part(part), part.end()) if part else (Fraction(0), position)


def _value_of_part(match: re.Match[str]) -> Fraction:
    return _SMALL.get((match[1] or "one").casefold(), 1) * _PARTS[match[2].casefold()]


def _read_words(text: str) -> tuple[Fraction, str] | None:
    article = _A_SCALE.match(text)
    total, group, position = Fraction(), int(article is not None), article.end() if article else 0
    words = [(match.start(), match[1].casefold(), match.end()) for match in _WORD.finditer(text, position)]
    for (start, word, end), (_, following, _) in zip(words, [*words[1:], (0, "", 0)], strict=False):
        if start != position:
            break
        if word in _SMALL and _fits(group, _SMALL[word]):
            group += _SMALL[word]
        elif word == "hundred" and 0 < group < 100:
            group *= 100
        elif word in SCALES and group:
            total, group = total + group * SCALES[word], 0
        elif word != "and" or not position or group % 100 or following not in _SMALL:
            break
        position = end
    if not total + group and text[:position].casefold() not in ("zero", "cero", "zéro", "null"):
        return None
    part, position = read_part(text, position)
    return total + group + part, text[position:]


def _fits(group: int, value: int) -> bool:
    """Whether a number word may come next: five after twenty or two hundred, none after five."""
    return group % 100 == 0 or (group % 100 >= 20 and group % 10 == 0 and 0 < value < 10)


def _read_chinese(numeral: str) -> int:
    total = section = digits = 0
    for sign in numeral.replace("两", "二"):
        value = int(unicodedata.numeric(sign))
        if value < 10:
            digits = 10 * digits + value
        elif value < 10**4:
            section, digits = section + (digits or 1) * value, 0
        else:
            total, section, digits = total + (section + digits or 1) * value, 0, 0
    return total + section + digits
