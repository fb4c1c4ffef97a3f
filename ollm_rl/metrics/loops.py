"""Detects text that continues without anything new: repeated sequences, runs of one character, counting."""

import re
from collections.abc import Iterator

import numpy as np

from ollm_rl.metrics.scripts import code_points

# A run is a sequence of tokens repeated without a break. At the end of a text it counts at any share of the text.
RUN_REPEATS = 4
RUN_TOKENS, RUN_SHARE = 12, 0.5
END_RUN_TOKENS = 8
SUM_TERMS = 32  # a text may end with fewer equal terms of a sum, and contain fewer equal items of a list
COUNTED_REPEATS = 8  # of a sequence in which only a number that counts on is new
CHARACTERS = 32  # equal characters or syllables in a row
RULE_CHARACTERS = 200  # characters that a rule of hyphens or dots may have
NGRAM = 8  # tokens
NGRAM_TOKENS, NGRAM_SHARE = 60, 0.95  # the last tokens, and the share in n-grams that occurred twice before

_SYLLABLES = re.compile(rf"([^\W_]|[^\W\d_]{{2,4}}?|[^\w\s&.·•…=~*#|+–—─━═_-])\1{{{CHARACTERS - 1},}}")
_SYLLABLES_PERIOD = 12  # in which syllables of 1 to 4 characters repeat
_BLANKS = re.compile(rf"\s{{{CHARACTERS},}}\Z|\s{{{RULE_CHARACTERS}}}")
_RULE = re.compile(r"([-–—─━═=_.·•…~*#|+&])\1{2,}|\.(?: \.){2,}")
_TABLE_RULE = re.compile(r"^[ \t|:+-]{3,}$|\\begin\{(?:array|tabular)\}\{[^}]*\}", re.MULTILINE)
_THOUSANDS = re.compile(r"(?<=\d)[,.](?=000(?!\d))")
# Words are cut at 20 characters: a run such as "hahaha..." has no spaces, and its equal pieces still show the period.
# Most digits of a number that is too long are tokens of their own.
_TOKEN = re.compile(
    rf"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]{{1,20}}|\d{{1,{CHARACTERS}}}(?!\d)|\d|[^\w\s]|_"
)
_OPERATORS = ("and", "plus", "+", "＋", "*", "×", "·", "−", "-", "cdot", "times")
# A part of a term, with a space between tokens: a number with its unit ("2 . 5 cm"), a command, a letter or a sign.
_NUMBER = r"\d+(?: [.,] \d+)*(?! \d)"
_PART = (
    rf"(?:{_NUMBER}(?: [^\W\d_]{{2,}}|(?: [\u3040-\u9fff]){{1,4}})?|\\ (?:(?![cl]?dots)[A-Za-z]+|[$%])"
    r"|(?:log|ln|sin|cos|tan|[A-Za-z\u0370-\u03ff½-¾⅐-⅞])(?!\w)|[-−+＋*/×·÷√!|^_{}()\[\]%¢$€£])"
)
_TERM = re.compile(rf"(?!.*[+*×·/÷] [+*×·/÷]){_PART}(?: {_PART})*")
# A number of a list, a factor in brackets, a function of a function, or a sign to count with.
_ITEM = re.compile(
    rf"{_NUMBER} [,;]|[,;] {_NUMBER}|\( {_NUMBER} \)"
    r"|(?:\\ )?\w+ (?:\^ )?[({]|[({] \w+(?: \^)?|[|/*#\u2190-\U0001faff]"
)


def is_loop(text: str) -> bool:
    """Whether a text loops, as `ollm_rl.metrics.degenerate.degeneracy` defines it."""
    if _has_syllables(text) or _BLANKS.search(text):
        return True
    if any(len(rule.group()) > RULE_CHARACTERS for rule in _RULE.finditer(text)):
        return True
    words = _TOKEN.findall(_THOUSANDS.sub("", _RULE.sub(" ", _TABLE_RULE.sub(" ", text))))
    tokens = _numbered(words)
    terms = _equal_terms(tokens, words)
    return terms is None or _says_nothing_new(np.delete(tokens, terms)) or _counts_on(words)


def _has_syllables(text: str) -> bool:
    """Whether one character or syllable is repeated. The pattern is slow, so characters are compared first."""
    signs = code_points(text)
    equal = (signs[_SYLLABLES_PERIOD:] == signs[:-_SYLLABLES_PERIOD]).tobytes()
    return b"\1" * (CHARACTERS - _SYLLABLES_PERIOD) in equal and _SYLLABLES.search(text) is not None


def _equal_terms(tokens: np.ndarray, words: list[str]) -> list[int] | None:
    """Positions of equal terms of sums and equal items of lists; None if any other sequence loops, tokens: (T,).

    Every period p is searched for a run of tokens that equal the token p positions before them.
    """
    positions: set[int] = set()
    for start, end, period, repeats in _runs(tokens, RUN_REPEATS):
        if _is_sound(words[start : start + period], end < len(words) - 1, repeats):
            positions.update(range(start, end))
        elif _is_long(start, end, len(words)) and not positions.issuperset(range(start, end)):
            return None
    return sorted(positions)


def _runs(tokens: np.ndarray, repeats: int) -> Iterator[tuple[int, int, int, int]]:
    """Start, end, period and repeats of every run with at least ``repeats`` repeats, tokens: (T,)."""
    # No token of a run is new after the first period, so the longest stretch without a new token bounds the period.
    longest = np.diff(np.flatnonzero(np.concatenate((_is_new(tokens), [True])))).max() - 1
    for period in range(1, (longest + 1) // (repeats - 1) + 1):
        equal = tokens[period:] == tokens[:-period]
        least = (repeats - 1) * period
        if np.count_nonzero(equal) < least - 1:
            continue
        edges = np.flatnonzero(np.concatenate(([True], ~equal, [True])))
        lengths = np.diff(edges) - 1
        lengths_needed = np.append(np.full(len(lengths) - 1, least), least - 1)  # the last sign may be missing
        for index in np.flatnonzero(lengths >= lengths_needed):
            start, length = int(edges[index]), int(lengths[index])
            yield start, start + length + period, period, length // period + 1


def _numbered(words: list[str]) -> np.ndarray:
    """Words as numbers in the order in which they first occur, (T,)."""
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    return np.array([numbers[word] for word in words], dtype=np.int32)


def _is_new(tokens: np.ndarray) -> np.ndarray:
    """Where a token of `_numbered` occurs for the first time, at least one token: (T,)."""
    return np.concatenate(([True], np.diff(np.maximum.accumulate(tokens)) > 0))


def _is_long(start: int, end: int, total: int) -> bool:
    """Whether a run ends the text, except for a token that may be cut off, or covers half of it."""
    if end >= total - 1:
        return end - start >= END_RUN_TOKENS
    return end - start >= max(RUN_TOKENS, RUN_SHARE * total)


def _is_sound(words: list[str], is_within: bool, repeats: int) -> bool:
    r"""Whether a period is a term of a sum or an item of a list, repeated no more than sound texts do.

    A term of a sum or product has a sign: "5 +", "2.5 cm +", "(1-1)+", ``\sqrt{2}+``. Terms may be many if the text
    continues after them, or few and end the text; items must be few and not end it.
    """
    is_short = repeats < SUM_TERMS
    if is_within and is_short and _ITEM.fullmatch(" ".join(words)):
        return True
    has_sign = any(word in _OPERATORS for word in words)
    has_operand = any(word.isalnum() and word not in _OPERATORS for word in words)
    return (is_within or is_short) and has_sign and has_operand and bool(_TERM.fullmatch(" ".join(words * 2)))


def _says_nothing_new(tokens: np.ndarray) -> bool:
    """Whether nearly all of the last tokens are in n-grams that occurred at least twice before, tokens: (T,).

    Once is not enough, because a solution may be stated again as the final write-up.
    """
    if len(tokens) < NGRAM_TOKENS or _is_new(tokens)[-NGRAM_TOKENS:].mean() > 1 - NGRAM_SHARE:
        return False  # most texts, soon: a new token is in no n-gram that occurred before
    ngrams = np.lib.stride_tricks.sliding_window_view(tokens, NGRAM)
    _, inverse = np.unique(ngrams, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    kinds = inverse.ravel()[order]
    known = np.zeros(len(ngrams), dtype=bool)
    known[order[2:]] = kinds[2:] == kinds[:-2]
    covered = np.convolve(known, np.ones(NGRAM)) > 0  # tokens in a known n-gram
    return bool(covered[-NGRAM_TOKENS:].mean() >= NGRAM_SHARE)


def _counts_on(words: list[str]) -> bool:
    """Whether a sequence of words is repeated with nothing new but a number that grows by one."""
    is_number = np.array([word.isdigit() for word in words], dtype=bool)
    if np.count_nonzero(is_number) < COUNTED_REPEATS:
        return False
    tokens = _numbered(["0" if word.isdigit() else word for word in words])
    for start, end, period, repeats in _runs(tokens, COUNTED_REPEATS):
        if not _is_long(start, end, len(words)) or all(is_number[start : start + period] | (period == 1)):
            continue
        rows = [words[first : first + period] for first in range(start, start + repeats * period, period)]
        if any(word.isalpha() for word in rows[0]) and all(map(_is_next, rows, rows[1:])):
            return True
    return False


def _is_next(row: list[str], following: list[str]) -> bool:
    """Whether the next row differs only in numbers that are one larger."""
    pairs = list(zip(row, following, strict=False))
    steps = {int(other[:9]) - int(one[:9]) for one, other in pairs if one.isdigit() and other.isdigit()}
    return 1 in steps and steps <= {0, 1} and all(one == other or one.isdigit() for one, other in pairs)
