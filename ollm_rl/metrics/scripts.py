"""Finds words and the scripts they are written in, by the names of Unicode."""

import functools
import re
import unicodedata

import numpy as np

# `re` does not treat combining vowel signs and tones as letters, but they occur inside words.
_SIGNS = r"\u0300-\u036f\u0900-\u0963\u0981-\u0d7f\u0d82-\u0df4\u0e31-\u0e4e\u0eb1-\u0ecd\u1000-\u109f\u1780-\u17d3"
_LETTERS = rf"(?:[^\W\d_]+|(?!\d)[{_SIGNS}])"
WORD = re.compile(rf"{_LETTERS}(?:{_LETTERS}|['’](?={_LETTERS}))*")
_ALPHABETS = {"LATIN", "GREEK", "CYRILLIC"}
# Characters that count as one word, in scripts without spaces between words.
_CHARACTERS = {"CJK": 2, "THAI": 4, "LAO": 4, "KHMER": 4, "MYANMAR": 4}
_SAME = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK", "IDEOGRAPHIC": "CJK", "HALFWIDTH": "CJK"}
_SAME |= {"FULLWIDTH": "LATIN"}
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


def script_of_word(word: str) -> str:
    """The script of most of a word's letters; none if they are of two alphabets ("Δx", a Cyrillic "а" in "apple")."""
    scripts = [script_of_letter(letter) for letter in word if letter.isalpha()]
    return "" if len(_ALPHABETS & set(scripts)) > 1 else max(scripts, key=scripts.count, default="")


def code_points(text: str) -> np.ndarray:
    """Numbers of a text's characters in Unicode, (N,)."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<i4")


def count_words(words: list[str], script: str) -> int:
    """Number of words. In scripts without spaces a run of letters counts by its length."""
    characters = _CHARACTERS.get(script, 0)
    return sum(-(-len(word) // characters) for word in words) if characters else len(words)
