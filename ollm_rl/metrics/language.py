"""Detects the language of a text, and whether a completion leaves the language of its prompt.

Texts are short solutions full of mathematics, so each sentence is judged by itself: by its script, and within a script
by `lingua` and by common words (`ollm_rl.metrics.detection`).
"""

import functools
import re
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

from ollm_rl.metrics.detection import (
    LANGUAGES,
    PROMPT_CONFIDENCE,
    SHORT_PROMPT,
    SURE_CONFIDENCE,
    confidences_of,
    is_other,
    is_surely_other,
    likeliest,
)
from ollm_rl.metrics.sentences import NAME_WORDS, QUOTED, Piece, all_words, split_pieces

SCRIPTS = {"ar": "ARABIC", "bn": "BENGALI", "hi": "DEVANAGARI", "ja": "CJK", "ko": "HANGUL", "ru": "CYRILLIC"}
SCRIPTS |= {"te": "TELUGU", "th": "THAI", "zh": "CJK"} | dict.fromkeys(("de", "en", "es", "fr", "sw"), "LATIN")
SWITCH_SHARE = 0.05
# A sentence is in the prompt's language at the first confidence, in another one at the second, or at the third if it
# has one or two words; else its neighbours decide.
STAY_CONFIDENCE = 0.25
LEAVE_CONFIDENCE = 0.6
LEAVE_CONFIDENCE_OF_FEW = 0.8
# A sentence of so many words is in another language if the prompt's language has at most this confidence.
FAR_WORDS, FAR_CONFIDENCE = 5, 0.15
# A sentence in which the prompt's language has less than this confidence may be in a language that is not known.
UNCLEAR_CONFIDENCE = 0.5
# The halves of a long sentence are judged separately if one of them is in another language at this confidence.
HALF_CONFIDENCE = 0.9
HALF_WORDS = 4
CLEAR_WORDS = 3  # minimum of a prompt's sentence to be in another language than the rest
SCRIPT_SHARE = 0.2  # minimum share of a prompt's words in a script for the prompt to use it

# First words by which a short prompt is English.
_ENGLISH_STARTS = (
    "find",
    "compute",
    "calculate",
    "solve",
    "evaluate",
    "simplify",
    "expand",
    "prove",
    "show",
    "what",
    "how",
)
# Letters of Ukrainian, Persian and Urdu that the one known language in their script lacks.
_FOREIGN_LETTERS = {"ru": re.compile("[іїєґ]"), "ar": re.compile("[پچژگکیہےںٹڈڑ]")}
_PARTICLE = re.compile("al|d[aeio]|das|de[lnr]|dos|du|el|las?|les?|los|van|von")  # within a name
_NAME = re.compile(r"[A-Z]|^[ァ-ヿ]+$")  # in a sentence in another script
_KANA = re.compile(r"[\u3040-\u30ff]")
_CHINESE_VERB = re.compile("是(?![非正認])")


class Switching(NamedTuple):
    """Number of words of a completion, of its words in another language than the prompt's, and of switches.

    Attributes:
        words: Words of the completion.
        foreign_words: Words in another language.
        switches: Changes from the prompt's language to another or back.
        known: Whether the prompt's language is known. If not, only words in another script count as foreign.
    """

    words: int
    foreign_words: int
    switches: int
    known: bool = True

    @property
    def switched(self) -> bool | None:
        """Whether at least SWITCH_SHARE of the words are in another language; None if that cannot be decided."""
        if 0 < self.foreign_words >= SWITCH_SHARE * self.words:
            return True
        return False if self.known else None


def detect_language(text: str) -> str | None:
    """Detect the main language of a text.

    Returns:
        The ISO 639-1 code, one of ``LANGUAGES``; None for another language, and without words to judge.
    """
    words = all_words(text)
    confidences = confidences_of(words)
    return None if not confidences or is_other(words, confidences) else likeliest(confidences)


def switches_language(prompt: str, completion: str) -> bool | None:
    """Whether at least 5 % of a completion's words are in another language than its prompt's.

    `measure_switching` defines words and how their language is detected.

    Returns:
        The verdict; False if the prompt or the completion has no words to judge, None if the prompt's language is not
        known and the completion is in the same script.
    """
    return measure_switching(prompt, completion).switched


def measure_switching(prompt: str, completion: str) -> Switching:
    """Count a completion's words, those in another language than its prompt's, and the switches between the two.

    Words exclude numbers, code (between backticks or [asy] marks, or lines of it), tags ("<think>"), addresses, LaTeX
    commands, short quotations, labels of up to four capitals ("LCM"), Roman numerals, functions ("cos"), single
    letters, two or three letters without a vowel ("x", "km"), and words of two alphabets ("Δx"). In Chinese and
    Japanese two characters count as one word, in Thai four.

    All words of a sentence in one script get that sentence's language, or that of its half if it changes in the middle.
    A script that the prompt's language does not use is another language. A sentence without a clear language ("Total:
    5", names, words of the prompt, one or two words of another script, four with capitals) counts as the one before it,
    at the start as the next clear one. A prompt too short to be clear ("Compute 3 + 4") gets that of its likely
    languages in which the completion begins. A prompt with sentences in several languages gets the one that makes the
    fewest words foreign.

    A switch is a change from the prompt's language to another or back, starting at the prompt. So a completion that is
    foreign throughout has one. A change from one foreign language to another is not a switch.

    Returns:
        The counts; all 0 if the prompt or the completion has no words to judge.
    """
    for quotation in QUOTED.finditer(prompt):
        completion = completion.replace(quotation[2] or quotation[3], " ")
    pieces = split_pieces(completion)
    asked = _prompt_pieces(prompt)
    if not asked or not pieces:
        return Switching(0, 0, 0)
    prompt = prompt.casefold()
    new = [piece for piece in pieces if not _repeats(prompt, piece)]
    measured = _measure(prompt, pieces, new, *_prompt_language(asked, new or pieces))
    if measured.foreign_words:  # an instruction may be in another language than the question
        others = [_measure(prompt, pieces, new, *language) for language in _sentence_languages(asked)]
        measured = min([measured, *others], key=lambda other: other.foreign_words)
    return measured


def _measure(prompt: str, pieces: list[Piece], new: list[Piece], language: str | None, script: str) -> Switching:
    """Count what is not in one language of a prompt, given in small letters; ``new`` pieces are not in the prompt."""
    uses_script = any(piece.script == script for piece in pieces)

    def verdict(piece: Piece) -> bool | None:
        """Whether a piece is in another language; None if it cannot be told, or has only the prompt's words."""
        if piece.script != script:
            is_foreign = _is_switch_of_script(piece, uses_script)
        else:
            is_foreign = _is_foreign(piece.words, language)
        return None if is_foreign and _repeats(prompt, piece) else is_foreign

    # Sentences of the prompt's words are never foreign, so they need no verdict unless another one is.
    if not any(verdict(part) for piece in new for part in _split_at_change(piece, script, language)):
        return Switching(sum(piece.num_words for piece in pieces), 0, 0, known=language is not None)
    pieces = [part for piece in pieces for part in _split_at_change(piece, script, language)]
    words, foreign_words, switches = _count(pieces, [verdict(piece) for piece in pieces])
    return Switching(words, foreign_words, switches, known=language is not None)


def _count(pieces: list[Piece], verdicts: list[bool | None]) -> tuple[int, int, int]:
    """Words, words in another language, and switches; a sentence without a verdict counts as the one before it."""
    current = next((verdict for verdict in verdicts if verdict is not None), False)
    words = foreign_words = 0
    switches = int(current)
    for piece, verdict in zip(pieces, verdicts, strict=True):
        if verdict is not None:
            switches += verdict != current
            current = verdict
        words += piece.num_words
        foreign_words += piece.num_words * current
    return words, foreign_words, switches


@functools.lru_cache(maxsize=256)
def _prompt_pieces(prompt: str) -> list[Piece]:
    """Pieces of a prompt, which most completions share with others."""
    return split_pieces(prompt, longest_quotation=len(prompt)) or split_pieces(prompt, longest_quotation=0)


def _sentence_languages(asked: list[Piece]) -> list[tuple[str | None, str]]:
    """Clear languages and scripts of a prompt's sentences, each with at least SCRIPT_SHARE of its words."""
    lengths: Counter[tuple[str | None, str]] = Counter()
    for piece in asked:
        confidences = confidences_of(piece.text) if piece.num_words >= CLEAR_WORDS else {}
        if max(confidences.values(), default=0.0) >= LEAVE_CONFIDENCE:
            language = likeliest(confidences)
            is_unknown = is_surely_other(piece.text, language)
            lengths[None if is_unknown else language, piece.script] += piece.num_words
    least = SCRIPT_SHARE * sum(piece.num_words for piece in asked)
    return [language for language, length in lengths.items() if length >= least]


def _prompt_language(asked: list[Piece], pieces: list[Piece]) -> tuple[str | None, str]:
    """Language and script of a prompt. The language is None if unknown, the script's name if no language here uses it.

    Among several likely languages or scripts it is the one in which the completion begins.
    """
    lengths: Counter[str] = Counter()
    for piece in asked:
        lengths[piece.script] += piece.num_words
    used = [script for script, length in lengths.items() if length >= SCRIPT_SHARE * lengths.total()]
    script = next((piece.script for piece in pieces if piece.script in used), lengths.most_common(1)[0][0])
    if script not in SCRIPTS.values():
        return script, script
    words = " ".join(piece.text for piece in asked if piece.script == script)
    confidences = confidences_of(words)
    if not confidences or is_other(words, confidences):
        return None, script
    possible = {code: value for code, value in confidences.items() if value >= PROMPT_CONFIDENCE}
    if lengths.total() < SHORT_PROMPT and script == SCRIPTS["en"]:
        if asked[0].words[0].casefold() in _ENGLISH_STARTS:
            return "en", script
        if max(confidences.values()) < SURE_CONFIDENCE:
            possible["en"] = max(confidences["en"], PROMPT_CONFIDENCE)
    if len(possible) == 1:
        return likeliest(possible), script
    beginning = confidences_of(" ".join(piece.text for piece in pieces if piece.script == script))
    return likeliest({code: value * beginning.get(code, 1.0) for code, value in possible.items()}), script


def _repeats(prompt: str, piece: Piece) -> bool:
    """Whether the prompt, in small letters, has all words of a piece."""
    return all(word.casefold() in prompt for word in piece.words)


def _split_at_change(piece: Piece, script: str, language: str | None) -> list[Piece]:
    """A whole sentence, or its halves if one is in the prompt's language and the other clearly in another one."""
    middle = len(piece.words) // 2
    if piece.script != script or language not in LANGUAGES or middle < HALF_WORDS:
        return [piece]
    halves = [replace(piece, words=piece.words[:middle]), replace(piece, words=piece.words[middle:])]
    languages = []
    for half in halves:
        confidences = confidences_of(half.text)
        languages.append(likeliest(confidences) if confidences else None)
        if languages[-1] != language and max(confidences.values(), default=0.0) < HALF_CONFIDENCE:
            return [piece]
    return halves if languages.count(language) == 1 else [piece]


def _is_switch_of_script(piece: Piece, uses_script: bool) -> bool | None:
    """Whether a piece in another script than the prompt's is in another language; None if it may be a name."""
    most = NAME_WORDS if not piece.is_whole else int(piece.script == "LATIN")
    if not piece.is_whole and all(_NAME.search(word) for word in piece.words):
        most = 2 * NAME_WORDS
    return None if uses_script and piece.num_words <= most else True


def _is_foreign(words: list[str], language: str | None) -> bool | None:
    """Whether a sentence in the prompt's script is in another language; None if that is unclear."""
    if language not in LANGUAGES:
        return None if language is None else False
    letters = _FOREIGN_LETTERS.get(language)
    if letters and sum(letters.search(word) is not None for word in words if not word[0].isupper()) > 1:
        return True
    text = " ".join(words)
    if language == "ja" and not _KANA.search(text) and _is_japanese(text):
        return None
    confidences = confidences_of(text)
    if not confidences:
        return None
    if confidences[language] >= UNCLEAR_CONFIDENCE:
        return False
    common = _without_names(words, language)
    if len(common) >= CLEAR_WORDS and is_surely_other(" ".join(common), language):
        return True
    if _stays(confidences, language):
        return False
    if len(common) < len(words):
        of_common = confidences_of(" ".join(common))
        if not of_common or _stays(of_common, language):
            return None
    needed = LEAVE_CONFIDENCE if len(words) > 2 else LEAVE_CONFIDENCE_OF_FEW
    is_far = len(words) >= FAR_WORDS and confidences[language] <= FAR_CONFIDENCE
    return True if max(confidences.values()) >= needed or is_far else None


def _without_names(words: list[str], language: str) -> list[str]:
    """Words without names, German nouns, and in English words with accents ("café"), which say less than the others."""
    is_name = [word[0].isupper() for word in words]
    for index, word in enumerate(words[1:], start=1):
        is_name[index] |= is_name[index - 1] and _PARTICLE.fullmatch(word) is not None
    is_name[0] = is_name[1:2] == [True] or (len(words) == 1 and words[0].istitle() and not words[0].isascii())
    if language == "en" and 2 * sum(not word.isascii() for word in words) <= len(words):
        is_name = [flag or not word.isascii() for flag, word in zip(is_name, words, strict=True)]
    return [word for word, flag in zip(words, is_name, strict=True) if not flag]


def _stays(confidences: dict[str, float], language: str) -> bool:
    return likeliest(confidences) == language or confidences[language] >= STAY_CONFIDENCE


def _is_japanese(text: str) -> bool:
    """Whether all characters are used in Japanese, which has no simplified ones and no "是" as a verb."""
    try:
        text.encode("shift_jis")
    except UnicodeEncodeError:
        return False
    return _CHINESE_VERB.search(text) is None
