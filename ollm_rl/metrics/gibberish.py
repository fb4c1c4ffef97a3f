"""Detects gibberish: unusual letter pairs, scripts mixed within words, characters without any regularity."""

import re
import unicodedata
import zlib
from collections.abc import Iterable

import numpy as np

from ollm_rl.metrics.scripts import code_points, script_of_letter
from ollm_rl.metrics.sentences import latin_words

MAX_LETTER_BITS = 4.5  # per letter pair
LETTER_PAIRS = 40  # minimum to judge a text
LETTER_WINDOW = 60  # pairs judged together
MAX_SCRIPTS, MAX_MIXED = 3, 3  # more scripts, and more often side by side, are gibberish
# Most bytes that deflate may leave, as a constant and a share. Human solutions stay below; short ones come closest.
DEFLATED_BYTES, DEFLATED_SHARE = 60, 0.585
MIN_BYTES = 200  # minimum to judge a text by deflate, unless it is all ASCII

# Not words: columns of tables, keys and digests.
_CODE = re.compile(
    r"\\begin\{(?:array|tabular)\}\{[^}]*\}|(?=[\w+/-]{16})(?:\b[\da-f]{16,}\b|\b[\dA-F]{16,}\b"
    r"|(?<![\w+/])(?=(?:[A-Za-z+/_-]*\d){3}|[a-z]*[A-Z]+[a-z]+[A-Z]+[a-z]+[A-Z])[\w+/-]{20,}={0,2})"
)

# Bits of the second letter given the first (one row per first letter, a to z, hexadecimal, at most 15). They come from
# the mean of the pair frequencies in English, Spanish, French, German and Swahili words, without accents. Made by
# ``experiments/bench/detectors.py DATA --half tune --only letters``.
_LETTER_TABLE = """
6655a756565342758334567967 3aad2fef2cf4ef3ff3654d6f8a 3f8c3ff24f56ef2fa6854fff7f 3eb81c983df9ab3af56a5dbf8f
57556767486452867334578877 3fdf35d93ff4ff3ff4743f9f8f 2dfa2f753f95764ef4654fafaf 28f92bff3fb6754ef4654f8faa
46553667985453569534966877 2fff3fff2fffff3fffff3fffef 2efd3c9f3f99a95df7562f3f8f 2977278b3f938949aa55489f69
2399279f3f865a35f8675f6f79 3a53374e4a78b54b9a4358af56 8666746746644266f334486988 2daf36f53fc4e836f3774fef8f
ffefffffffffffffffff0fffff 266529693f77663a9645579f79 3b5a3a743f898a458e424a9f9f 3a8f2ba33fc9ba3ef4555f7f77
4656356759654276a344875677 3ffd2fff2fffff3ff5ff5dff4f 1bfd2df53fdbf75ff88f6fffef 2d4d4dd92ddddd92dcd2bbac9d
1a9a3daf6ff44636fa594ecffd 18ff4fff2f89f739ff963f5f68
"""
_LETTER_BITS = np.array([[int(bits, 16) for bits in row] for row in _LETTER_TABLE.split()])


def is_gibberish(text: str) -> bool:
    """Whether a text has unusual letter pairs, scripts mixed within words, or no regularity."""
    text = _CODE.sub(" ", text)
    return letter_bits(text) > MAX_LETTER_BITS or _is_mixed(text) or _is_incompressible(text)


def letter_bits(text: str) -> float:
    """How unusual the letters of a text are: mean bits of a letter given the one before, in words in Latin script.

    The result is the maximum over all windows of 60 successive letter pairs: about 3.5 in English, 0 with fewer than 40
    pairs. Every word counts once and without accents. Words are those of `sentences`, except words in capitals (points
    of a figure).
    """
    pairs = letter_pairs(dict.fromkeys(word.lower() for word in latin_words(text) if not word.isupper()))
    if len(pairs) < LETTER_PAIRS:
        return 0.0
    window = min(LETTER_WINDOW, len(pairs))
    totals = np.concatenate(([0], np.cumsum(_LETTER_BITS[pairs[:, 0], pairs[:, 1]])))
    return float((totals[window:] - totals[:-window]).max() / window)


def letter_pairs(words: Iterable[str]) -> np.ndarray:
    """Pairs of neighbouring letters a to z of words, without accents; other characters separate.

    Returns:
        Numbers from 0, (N, 2).
    """
    text = " ".join(words).lower()
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    codes = code_points(text) - ord("a")
    pairs = np.stack((codes[:-1], codes[1:]), axis=1)
    return pairs[((pairs >= 0) & (pairs < 26)).all(axis=1)]


def _is_incompressible(text: str) -> bool:
    data = text.encode(errors="replace")
    if len(data) < MIN_BYTES and not text.isascii():
        return False
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)  # raw: a header would count much in short texts
    deflated = len(compressor.compress(data)) + len(compressor.flush())
    return deflated > DEFLATED_BYTES + DEFLATED_SHARE * len(data)


def _is_mixed(text: str) -> bool:
    """Whether letters of many scripts are side by side. Greek does not count, because formulas use it."""
    script_of = {letter: script_of_letter(letter) if letter.isalpha() else "" for letter in set(text)}
    if len(set(script_of.values()) - {"", "GREEK"}) <= MAX_SCRIPTS:
        return False
    scripts = ["" if script_of[letter] == "GREEK" else script_of[letter] for letter in text]
    return (
        sum(bool(one and other and one != other) for one, other in zip(scripts, scripts[1:], strict=False)) > MAX_MIXED
    )
