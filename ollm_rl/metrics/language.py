"""Detects the language of a text, and whether a completion leaves the language of its prompt.

Texts are short solutions full of mathematics, so numbers, symbols and LaTeX are removed first. Each sentence is judged
by itself, by `lingua`, whose n-gram models work even for single words (loaded at first use).
"""

import functools
import re
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lingua import LanguageDetector

LANGUAGES = ("ar", "bn", "de", "en", "es", "fr", "hi", "ja", "ko", "ru", "sw", "te", "th", "zh")
SWITCH_SHARE = 0.05
# A sentence is in the prompt's language at the first confidence, in another one at the second; else neighbours decide.
STAY_CONFIDENCE = 0.25
LEAVE_CONFIDENCE = 0.6
PROMPT_CONFIDENCE = 0.1  # minimum for a language the prompt may be in; long prompts reach it only in their own
# The halves of a long sentence are judged separately if one of them is in another language at this confidence.
HALF_CONFIDENCE = 0.9
HALF_WORDS = 4
MAX_JUDGED_CHARACTERS = 200  # a longer text adds time but no information

# `re` does not treat combining vowel signs of the Indic scripts and Thai as letters, but they occur inside words.
_LETTER = r"(?:(?!\d)(?:[^\W_]|[\u0900-\u0963\u0981-\u0d7f\u0e31-\u0e4e]))"
_WORD = re.compile(rf"{_LETTER}(?:{_LETTER}|['’](?={_LETTER}))*")
_MARKUP = re.compile(
    r"\[asy\](?:(?!\[asy\]).)*?\[/asy\]|```(?:(?!```).)*```|\\(?:begin|end)\{[^}]*\}|\\[a-zA-Z]+", re.DOTALL
)
_SENTENCE_END = re.compile(r"[.!?:;\n।。！？：；]+")
_SYMBOL = re.compile(r"[a-z]|[b-df-hj-np-tv-z]{2,3}|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|cis|log|sqrt", re.IGNORECASE)
_THAI = re.compile(r"[\u0e00-\u0e7f]")
_CHINESE_OR_JAPANESE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")


class Switching(NamedTuple):
    """Number of words of a completion, of its words in another language than the prompt's, and of switches."""

    words: int
    foreign_words: int
    switches: int

    @property
    def switched(self) -> bool:
        """Whether at least SWITCH_SHARE of the words are in another language than the prompt's."""
        return 0 < self.foreign_words >= SWITCH_SHARE * self.words


def detect_language(text: str) -> str | None:
    """Detect the main language of a text.

    Returns:
        The ISO 639-1 code, one of ``LANGUAGES``, or None without words to judge.
    """
    confidences = _confidences(_all_words(text))
    return _likeliest(confidences) if confidences else None


def switches_language(prompt: str, completion: str) -> bool:
    """Whether at least 5 % of a completion's words are in another language than its prompt's.

    `measure_switching` defines words and how their language is detected.

    Returns:
        The verdict; False if the prompt or the completion has no words to judge.
    """
    return measure_switching(prompt, completion).switched


def measure_switching(prompt: str, completion: str) -> Switching:
    """Count a completion's words, those in another language than its prompt's, and the switches between the two.

    Words exclude numbers, code (between ``` or [asy] marks), LaTeX commands and labels of up to four capitals ("LCM").
    In Latin script they also exclude names of functions ("cos"), single letters, and two or three letters without a
    vowel ("x", "km"). In Chinese and Japanese two characters count as one word, in Thai four.

    All words of a sentence in one script get that sentence's language, or that of its half if it changes in the middle.
    A sentence without a clear language ("Total: 5", names known from the prompt) counts as the one before it, at the
    start as the next clear one. A prompt too short to be clear ("Compute 3 + 4") gets that of its likely languages in
    which the completion begins.

    A switch is a change from the prompt's language to another or back, starting at the prompt. So a completion that is
    foreign throughout has one. A change from one foreign language to another is not a switch.

    Returns:
        The counts; all 0 if the prompt or the completion has no words to judge.
    """
    prompt_confidences = _confidences(_all_words(prompt))
    pieces = _pieces(completion)
    if not prompt_confidences or not pieces:
        return Switching(0, 0, 0)
    language = _prompt_language(prompt_confidences, pieces)
    prompt_words = frozenset(_all_words(prompt).casefold().split())
    pieces = [part for piece in pieces for part in _split_at_change(piece, language)]
    foreign = [_is_foreign(piece, language, prompt_words) for piece in pieces]
    current = next((verdict for verdict in foreign if verdict is not None), False)
    words = foreign_words = 0
    switches = int(current)
    for piece, verdict in zip(pieces, foreign, strict=True):
        if verdict is not None:
            switches += verdict != current
            current = verdict
        num_words = sum(_word_length(word) for word in piece)
        words += num_words
        foreign_words += num_words * current
    return Switching(words, foreign_words, switches)


@functools.cache
def _detector() -> "LanguageDetector":
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = [getattr(IsoCode639_1, code.upper()) for code in LANGUAGES]
    return LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()


@functools.lru_cache(maxsize=65536)
def _confidences(words: str) -> dict[str, float]:
    """Probability of each language for words joined by spaces; empty if the detector knows none of the letters."""
    values = _detector().compute_language_confidence_values(words[:MAX_JUDGED_CHARACTERS])
    confidences = {value.language.iso_code_639_1.name.lower(): value.value for value in values}
    return confidences if any(confidences.values()) else {}


def _likeliest(confidences: dict[str, float]) -> str:
    return max(confidences, key=lambda code: confidences[code])


def _prompt_language(confidences: dict[str, float], pieces: list[list[str]]) -> str:
    """The language of a prompt. Among several likely ones it is the one in which the completion begins."""
    possible = {code: value for code, value in confidences.items() if value >= PROMPT_CONFIDENCE}
    beginning = next(filter(None, (_confidences(" ".join(piece)) for piece in pieces)), {})
    return _likeliest({code: value * beginning.get(code, 1.0) for code, value in possible.items()})


def _split_at_change(words: list[str], language: str) -> list[list[str]]:
    """A whole sentence, or its halves if one is in the prompt's language and the other clearly in another one."""
    middle = len(words) // 2
    if middle < HALF_WORDS:
        return [words]
    halves = [words[:middle], words[middle:]]
    first, second = (_confidences(" ".join(half)) for half in halves)
    if not first or not second or (_likeliest(first) == language) == (_likeliest(second) == language):
        return [words]
    foreign = second if _likeliest(first) == language else first
    return halves if foreign[_likeliest(foreign)] >= HALF_CONFIDENCE else [words]


def _is_foreign(words: list[str], language: str, prompt_words: frozenset[str]) -> bool | None:
    """Whether a sentence is in another language; None if that is unclear."""
    confidences = _confidences(" ".join(words))
    if not confidences:
        return None
    likeliest = _likeliest(confidences)
    if likeliest == language or confidences[language] >= STAY_CONFIDENCE:
        return False
    known = all(word.casefold() in prompt_words for word in words)
    return True if confidences[likeliest] >= LEAVE_CONFIDENCE and not known else None


def latin_words(text: str) -> list[str]:
    """Words of a text in Latin script, without code, LaTeX commands, variables, units and labels."""
    return [word for piece in _pieces(text) if _is_latin(piece[0]) for word in piece]


def _all_words(text: str) -> str:
    return " ".join(word for piece in _pieces(text) for word in piece)


def _pieces(text: str) -> list[list[str]]:
    """Split a text into sentences, and sentences where the script changes; each piece is a non-empty list of words."""
    sentences = (_words(sentence) for sentence in _SENTENCE_END.split(_MARKUP.sub(" ", text)))
    return [list(group) for words in sentences for _, group in groupby(words, key=_is_latin)]


def _words(sentence: str) -> list[str]:
    """Words that indicate a language: no variables, units or labels."""
    return [word for word in _WORD.findall(sentence) if not (_SYMBOL.fullmatch(word) or _is_label(word))]


def _is_label(word: str) -> bool:
    return word.isupper() and len(word) <= 4


def _is_latin(word: str) -> bool:
    return word[0] < "\u0250"


def _word_length(word: str) -> int:
    """Number of words that an unbroken run of letters counts as."""
    if _CHINESE_OR_JAPANESE.match(word):
        return (len(word) + 1) // 2
    return (len(word) + 3) // 4 if _THAI.match(word) else 1
