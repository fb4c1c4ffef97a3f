"""Detects degenerate completions: loops, no end, gibberish, empty or answer-less text.

Definitions, examples and limits are in ``docs/metrics.md``; ``experiments/bench/detectors.py`` measures the detectors.
"""

import functools
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from ollm_rl.answers.extraction import extract_answer
from ollm_rl.metrics.language import latin_words

FLAGS = ("loop", "no_end", "gibberish", "empty", "no_answer")

# A run is a sequence of tokens repeated without a break. At the end of a text it counts at any share of the text.
RUN_REPEATS = 4
RUN_TOKENS, RUN_SHARE = 12, 0.5
END_RUN_TOKENS = 8
NGRAM = 8  # tokens
NGRAM_TOKENS, NGRAM_SHARE = 60, 0.95  # the last tokens, and the share of them in n-grams that occurred before

MAX_LETTER_BITS = 4.5  # per letter pair
LETTER_PAIRS = 40  # minimum to judge a text
LETTER_WINDOW = 60  # pairs judged together
MAX_SCRIPTS = 3
# Most bytes that deflate may leave, as a constant and a share. Human solutions stay below; short ones come closest.
DEFLATED_BYTES, DEFLATED_SHARE = 60, 0.585
MAX_PERPLEXITY = 20.0
PERPLEXITY_TOKENS = 10

# Cut at 20 characters: a run such as "hahaha..." has no spaces, and its equal pieces still show the period.
_TOKEN = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]{1,20}|\d{1,20}|[^\w\s]|_")

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


def degeneracy(text: str, *, finished: bool = True, log_probs: Sequence[float] | None = None) -> frozenset[str]:
    """Name what is degenerate about a completion.

    - ``loop``: a sequence of tokens is repeated at least 4 times in a row. This run has at least 8 tokens and ends the
      text (except for one token that may be cut off), or has at least 12 and covers at least half of the text. Or at
      least 95 % of the last 60 tokens are in sequences of 8 that occurred before in the text. A token is a word, a
      whole number, a sign, or a character of a script without spaces.
    - ``no_end``: generation reached its token limit.
    - ``gibberish``: letter pairs unlike those of the languages in Latin script (`letter_bits` above 4.5), letters of
      more than 3 scripts, a text that deflate hardly shortens, or perplexity above 20.
    - ``empty``: only white space.
    - ``no_answer``: not empty, but without a box, ``####``, an answer phrase and any number.

    Args:
        text: The completion.
        finished: Whether it ended by itself, not at the token limit.
        log_probs: Log-probabilities of its tokens under the backbone, in nats, if known.

    Returns:
        Those of FLAGS that apply; none for a sound completion.
    """
    flags = set()
    if not finished:
        flags.add("no_end")
    if not text.strip():
        flags.add("empty")
    elif extract_answer(text) is None:
        flags.add("no_answer")
    if _is_loop(text):
        flags.add("loop")
    if _is_gibberish(text) or (log_probs is not None and is_improbable(log_probs)):
        flags.add("gibberish")
    return frozenset(flags)


def is_improbable(log_probs: Sequence[float]) -> bool:
    """Whether there are at least 10 tokens and their perplexity is above 20 (mean log-probability below -3.0 nats)."""
    return len(log_probs) >= PERPLEXITY_TOKENS and bool(np.mean(log_probs) < -np.log(MAX_PERPLEXITY))


def letter_bits(text: str) -> float:
    """How unusual the letters of a text are: mean bits of a letter given the one before, in words in Latin script.

    The result is the maximum over all windows of 60 successive letter pairs: about 3.5 in English, 0 with fewer than 40
    pairs. Every word counts once and without accents. Words are those of `language`, except words in capitals (points
    of a figure).
    """
    pairs = letter_pairs(dict.fromkeys(word.lower() for word in latin_words(text) if not word.isupper()))
    if len(pairs) < LETTER_PAIRS:
        return 0.0
    window = min(LETTER_WINDOW, len(pairs))
    totals = np.concatenate(([0], np.cumsum(_LETTER_BITS[tuple(zip(*pairs, strict=True))])))
    return float((totals[window:] - totals[:-window]).max() / window)


def letter_pairs(words: Iterable[str]) -> list[tuple[int, int]]:
    """Pairs of neighbouring letters a to z of words, as numbers from 0, without accents; other characters separate."""
    pairs: list[tuple[int, int]] = []
    for word in words:
        letters = [c for c in unicodedata.normalize("NFKD", word.lower()) if not unicodedata.combining(c)]
        codes = [ord(letter) - ord("a") for letter in letters]
        pairs += [pair for pair in zip(codes, codes[1:], strict=False) if min(pair) >= 0 and max(pair) < 26]
    return pairs


def _is_gibberish(text: str) -> bool:
    return (
        letter_bits(text) > MAX_LETTER_BITS
        or len({_script(character) for character in set(text) if character.isalpha()} - {""}) > MAX_SCRIPTS
        or _is_incompressible(text.encode(errors="replace"))
    )


def _is_incompressible(data: bytes) -> bool:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)  # raw: a header would count much in short texts
    deflated = len(compressor.compress(data)) + len(compressor.flush())
    return deflated > DEFLATED_BYTES + DEFLATED_SHARE * len(data)


@functools.lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """Script of a letter by its Unicode name. Chinese and Japanese are one; Greek and symbols (formulas) have none."""
    script = unicodedata.name(letter, "").partition(" ")[0]
    if script in ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC"):
        return "CJK"
    known = ("LATIN", "CYRILLIC", "ARABIC", "HEBREW", "DEVANAGARI", "BENGALI", "TELUGU", "TAMIL", "THAI", "HANGUL")
    return script if script in known else ""


def _is_loop(text: str) -> bool:
    codes: dict[str, int] = {}
    tokens = np.array([codes.setdefault(token, len(codes)) for token in _TOKEN.findall(text)])
    return _has_run(tokens) or _repeats_ngrams(tokens)


def _has_run(tokens: np.ndarray) -> bool:
    """Search every period p for a run of tokens that equal the token p positions before them, tokens: (T,)."""
    min_tokens = max(RUN_TOKENS, RUN_SHARE * len(tokens))
    for period in range(1, len(tokens) // RUN_REPEATS + 1):
        equal = tokens[period:] == tokens[:-period]
        min_matches = (RUN_REPEATS - 1) * period
        if np.count_nonzero(equal) < min_matches:
            continue
        runs = np.diff(np.flatnonzero(np.concatenate(([True], ~equal, [True])))) - 1
        last = runs[-1] or runs[-2:].max()  # the last token may be cut off
        if runs.max() >= max(min_tokens - period, min_matches) or last >= max(END_RUN_TOKENS - period, min_matches):
            return True
    return False


def _repeats_ngrams(tokens: np.ndarray) -> bool:
    """Whether nearly all of the last tokens are in n-grams that occurred before, tokens: (T,)."""
    if len(tokens) < NGRAM_TOKENS:
        return False
    ngrams = np.lib.stride_tricks.sliding_window_view(tokens, NGRAM)
    _, first, inverse = np.unique(ngrams, axis=0, return_index=True, return_inverse=True)
    known = first[inverse.ravel()] < np.arange(len(ngrams))
    covered = np.convolve(known, np.ones(NGRAM)) > 0  # tokens in a known n-gram
    return bool(covered[-NGRAM_TOKENS:].mean() >= NGRAM_SHARE)
