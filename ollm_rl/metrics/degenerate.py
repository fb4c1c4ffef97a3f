"""Detects degenerate completions: loops, no end, gibberish, empty or answer-less text.

Definitions, examples and limits are in ``docs/metrics.md``; ``experiments/bench/detectors.py`` measures the detectors.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from ollm_rl.answers.extraction import extract_answer
from ollm_rl.answers.quantities import read_quantity
from ollm_rl.metrics.gibberish import is_gibberish
from ollm_rl.metrics.loops import is_loop

FLAGS = ("loop", "no_end", "gibberish", "empty", "no_answer")

MAX_PERPLEXITY = 20.0
PERPLEXITY_TOKENS = 10

_CHOICE = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice) )?\(?[A-Z]\)?")
_BLANKS = "\u2800\u3164\uffa0\u115f\u1160\u034f\ufe0e\ufe0f"  # blank, but signs or letters to Unicode


def degeneracy(text: str, *, finished: bool = True, log_probs: Sequence[float] | None = None) -> frozenset[str]:
    """Name what is degenerate about a completion.

    - ``loop``: a sequence of tokens is repeated at least 4 times in a row. This run has at least 8 tokens and ends the
      text (its last token may be missing, or one more cut off), or has at least 12 and covers at least half of the
      text. Equal terms of a sum are not a loop, nor fewer than 32 equal numbers or signs before other text. Or at least
      95 % of the last 60 tokens are in sequences of 8 that occurred twice before. Or one character or syllable is
      repeated 32 times, or one sequence 8 times with nothing new but a number that counts on. A token is a word, a
      whole number, a sign, or a character of a script without spaces.
    - ``no_end``: generation reached its token limit.
    - ``gibberish``: letter pairs unlike those of the languages in Latin script (`letter_bits` above 4.5), letters of
      more than 3 scripts side by side within words, a text that deflate hardly shortens, or perplexity above 20.
    - ``empty``: only characters that nobody sees.
    - ``no_answer``: not empty, but without a box, ``####``, an answer phrase, a number, and the letter of a choice.

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
    if _is_empty(text):
        return frozenset([*flags, "empty"])
    if not _has_answer(text):
        flags.add("no_answer")
    if is_loop(text):
        flags.add("loop")
    if is_gibberish(text) or (log_probs is not None and is_improbable(log_probs)):
        flags.add("gibberish")
    return frozenset(flags)


def is_improbable(log_probs: Sequence[float]) -> bool:
    """Whether there are at least 10 tokens and their perplexity is above 20 (mean log-probability below -3.0 nats)."""
    return len(log_probs) >= PERPLEXITY_TOKENS and bool(np.mean(log_probs) < -np.log(MAX_PERPLEXITY))


def _is_empty(text: str) -> bool:
    """Whether a text has only white space, characters without width and control characters."""
    return all(unicodedata.category(sign)[0] in "CZ" or sign in _BLANKS or sign.isspace() for sign in text)


def _has_answer(text: str) -> bool:
    """Whether a text states an answer, has a number, or ends with a number in words or the letter of a choice."""
    if any(sign.isnumeric() for sign in text):
        return True
    found = extract_answer(text)
    if found is None or found[1] != "last_number":
        return found is not None
    return bool(_CHOICE.fullmatch(found[0])) or read_quantity(found[0]) is not None
