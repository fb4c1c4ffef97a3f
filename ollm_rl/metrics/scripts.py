"""Finds words and the scripts they are written in, by the names of Unicode."""

import functools
import re
import unicodedata

# `re` does not treat combining vowel signs and tones as letters, but they occur inside words.
_SIGNS = r"\u0300-\u036f\u0900-\u0963\u0981-\u0d7f\u0d82-\u0df4\u0e31-\u0e4e\u0eb1-\u0ecd\u1000-\u109f\u1780-\u17d3"
_LETTER = rf"(?:(?!\d)(?:[^\W_]|[{_SIGNS}]))"
WORD = re.compile(rf"{_LETTER}(?:{_LETTER}|['’](?={_LETTER}))*")
# Characters that count as one word, in scripts without spaces between words.
_CHARACTERS = {"CJK": 2, "THAI": 4, "LAO": 4, "KHMER": 4, "MYANMAR": 4}
_SAME = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK", "IDEOGRAPHIC": "CJK", "HALFWIDTH": "CJK"}
# First words in the Unicode names of letters that are signs of mathematics, sound or units.
_NO_SCRIPT = (
    "MATHEMATICAL",
    "DOUBLE-STRUCK",
    "SCRIPT",
    "BLACK-LETTER",
    "MODIFIER",
    "COMBINING",
    "MICRO",
    "OHM",
    "KELVIN",
)


@functools.lru_cache(maxsize=4096)
def script_of_letter(letter: str) -> str:
    """Name of a letter's script. Chinese and Japanese are one; signs that are letters only to Unicode have none."""
    name = unicodedata.name(letter, "").partition(" ")[0]
    return "" if name in _NO_SCRIPT else _SAME.get(name, name)


@functools.lru_cache(maxsize=4096)
def script_of_word(word: str) -> str:
    """The script of most of a word's letters."""
    scripts = [script_of_letter(letter) for letter in word if letter.isalpha()]
    return max(scripts, key=scripts.count, default="")


def word_length(word: str, script: str) -> int:
    """Number of words that an unbroken run of letters counts as."""
    characters = _CHARACTERS.get(script, 0)
    return -(-len(word) // characters) if characters else 1
