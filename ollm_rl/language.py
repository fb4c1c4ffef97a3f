"""Which language a text is in, and whether a completion leaves the language of its prompt.

Texts here are short solutions full of mathematics, so numbers, symbols and LaTeX are taken out first and each
sentence is judged for itself by `lingua` (n-gram models that hold for a single word; loaded at first use).
"""

import functools
import re
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lingua import LanguageDetector

LANGUAGES = ("ar", "bn", "de", "en", "es", "fr", "hi", "ja", "ko", "ru", "sw", "te", "th", "zh")
SWITCH_SHARE = 0.2
# A sentence keeps the prompt's language at the first confidence and leaves it at the second; else neighbours decide.
STAY_CONFIDENCE = 0.25
LEAVE_CONFIDENCE = 0.6
MAX_JUDGED_CHARACTERS = 200  # more of one text tells no more and costs time

# Combining vowel signs of the Indic scripts and Thai are no letters to `re`, yet they stand inside words.
_LETTER = r"(?:(?!\d)(?:[^\W_]|[\u0900-\u0963\u0981-\u0d7f\u0e31-\u0e4e]))"
_WORD = re.compile(rf"{_LETTER}(?:{_LETTER}|['’](?={_LETTER}))*")
_MARKUP = re.compile(r"\[asy\](?:(?!\[asy\]).)*?\[/asy\]|\\(?:begin|end)\{[^}]*\}|\\[a-zA-Z]+", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?:;\n।。！？：；]+")
_SYMBOL = re.compile(r"[a-z]|[b-df-hj-np-tv-z]{2,3}", re.IGNORECASE)
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]")


def detect_language(text: str) -> str | None:
    """Name the main language of a text.

    Returns:
        The ISO 639-1 code, one of ``LANGUAGES``, or None if there are no words to judge.
    """
    confidences = _confidences(_all_words(text))
    return _likeliest(confidences) if confidences else None


def switches_language(prompt: str, completion: str) -> bool:
    """Say whether at least 20 % of a completion's words are in another language than its prompt's.

    Words are what is left without numbers, LaTeX commands, labels of up to four capitals ("LCM") and, in Latin
    script, single letters and up to three without a vowel ("x", "km"); in scripts without spaces two characters count
    as one word. All words of a sentence in one script take that sentence's language. A sentence that does not tell
    ("Total: 5", names known from the prompt) goes with the one before it, at the start with the next one that tells.
    A prompt too short to tell ("Compute 3 + 4") allows each language that it may well be in.

    Returns:
        The verdict; False if the prompt or the completion has no words to judge.
    """
    prompt_confidences = _confidences(_all_words(prompt))
    pieces = _pieces(completion)
    if not prompt_confidences or not pieces:
        return False
    allowed = frozenset(code for code, value in prompt_confidences.items() if value >= STAY_CONFIDENCE)
    allowed |= {_likeliest(prompt_confidences)}
    prompt_words = frozenset(_all_words(prompt).casefold().split())
    foreign = [_is_foreign(piece, allowed, prompt_words) for piece in pieces]
    current = next((verdict for verdict in foreign if verdict is not None), False)
    foreign_words = total_words = 0
    for piece, verdict in zip(pieces, foreign, strict=True):
        current = current if verdict is None else verdict
        num_words = sum(_word_length(word) for word in piece)
        total_words += num_words
        foreign_words += num_words * current
    return foreign_words >= SWITCH_SHARE * total_words


@functools.cache
def _detector() -> "LanguageDetector":
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = [getattr(IsoCode639_1, code.upper()) for code in LANGUAGES]
    return LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()


@functools.lru_cache(maxsize=65536)
def _confidences(words: str) -> dict[str, float]:
    """Probability of each language for words joined by spaces; empty if the detector finds none of its letters."""
    values = _detector().compute_language_confidence_values(words[:MAX_JUDGED_CHARACTERS])
    confidences = {value.language.iso_code_639_1.name.lower(): value.value for value in values}
    return confidences if any(confidences.values()) else {}


def _likeliest(confidences: dict[str, float]) -> str:
    return max(confidences, key=lambda code: confidences[code])


def _is_foreign(words: list[str], allowed: frozenset[str], prompt_words: frozenset[str]) -> bool | None:
    """Whether a sentence is in none of the allowed languages; None where that cannot be told."""
    confidences = _confidences(" ".join(words))
    if not confidences:
        return None
    likeliest = _likeliest(confidences)
    if likeliest in allowed or any(confidences[code] >= STAY_CONFIDENCE for code in confidences.keys() & allowed):
        return False
    known = all(word.casefold() in prompt_words for word in words)
    return True if confidences[likeliest] >= LEAVE_CONFIDENCE and not known else None


def _all_words(text: str) -> str:
    return " ".join(word for piece in _pieces(text) for word in piece)


def _pieces(text: str) -> list[list[str]]:
    """Split a text into sentences, and those where the script changes, each a non-empty list of words."""
    sentences = (_words(sentence) for sentence in _SENTENCE_END.split(_MARKUP.sub(" ", text)))
    return [list(group) for words in sentences for _, group in groupby(words, key=_is_latin)]


def _words(sentence: str) -> list[str]:
    """Words that tell a language: no variables, units or labels."""
    return [word for word in _WORD.findall(sentence) if not (_SYMBOL.fullmatch(word) or _is_label(word))]


def _is_label(word: str) -> bool:
    return word.isupper() and len(word) <= 4


def _is_latin(word: str) -> bool:
    return word[0] < "\u0250"


def _word_length(word: str) -> int:
    """Number of words that an unbroken run of letters stands for."""
    return (len(word) + 1) // 2 if _UNSPACED.match(word) else 1
