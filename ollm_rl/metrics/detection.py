"""Probabilities of languages by the n-gram models of `lingua` and by common words."""

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lingua import LanguageDetector

LANGUAGES = ("ar", "bn", "de", "en", "es", "fr", "hi", "ja", "ko", "ru", "sw", "te", "th", "zh")
# Known only so that a prompt in one of them is not taken for one in a language of LANGUAGES.
OTHERS = ("cs", "fa", "fi", "hu", "id", "it", "mr", "nl", "pl", "pt", "ro", "sv", "tr", "uk", "ur", "vi")
PROMPT_CONFIDENCE = 0.1  # minimum for a language the prompt may be in; long prompts reach it only in their own
SURE_CONFIDENCE = 0.9  # of English, from which on OTHERS are not considered
OTHERS_CONFIDENCE = 0.8  # minimum sum of OTHERS for a completion's sentence to be in one of them
SHORT_PROMPT = 4  # words; a prompt with fewer may always be English
MAX_JUDGED_CHARACTERS = 200  # a longer text adds time but no information
# A common word of a language multiplies its probability by so much: n-grams say little about short or borrowed words.
COMMON_WORD_WEIGHT = 10

# Of known languages in Latin script and of those of OTHERS that are close to them.
_COMMON_WORDS = {
    code: frozenset(words.split())
    for code, words in {
        "de": "das dem den der des du ein eine es für im ist mit nicht noch sie sind um und von wie wir wird zu",
        "en": "about and are but for from has have how if it of per that the then there they this to what which with",
        "es": "con cuántas cuánto cuántos da de del el en es hay la las le les los más para pero por que son su un una",
        "fr": "au avec combien dans de des donc du elle en est et il la le les par pour que qui sont sur un une",
        "it": "che con dei del della di gli ha il la le nel per più quanti sono sul un una",
        "nl": "dan de dus een en er het hij hoeveel met niet nog of te van voor zijn",
        "pt": "com da de dos ele em há mais na não os para por quantas quantos que são tem um uma",
        "sw": "hivyo katika kila kisha kuna kwa na ngapi ni sasa wa ya za",
    }.items()
}

# A text of every script with several languages, short and long, which n-grams of different lengths decide.
_SAMPLES = ("these words", "these words " * 15, "эти слова", "هذه الكلمات", "ये शब्द")


def load_models() -> None:
    """Load the models of all languages, which else happens once a text needs them."""
    for words in _SAMPLES:
        for with_others in (False, True):
            confidences_of(words, with_others)


def confidences_of(words: str, with_others: bool = False) -> dict[str, float]:
    """Probability of each language for words joined by spaces; empty if the detector knows none of the letters."""
    return _confidences_of(words[:MAX_JUDGED_CHARACTERS], with_others)


def likeliest(confidences: dict[str, float]) -> str:
    """The language of the highest probability."""
    return max(confidences, key=lambda code: confidences[code])


def is_other(words: str, confidences: dict[str, float]) -> bool:
    """Whether words, which have these probabilities, are more likely in one of OTHERS."""
    english = confidences["en"]
    if english >= SURE_CONFIDENCE or (english >= PROMPT_CONFIDENCE and words.count(" ") + 1 < SHORT_PROMPT):
        return False
    of_all = confidences_of(words, with_others=True)
    return likeliest(of_all) in OTHERS and sum(of_all[code] for code in OTHERS) >= 0.5


def is_surely_other(words: str, language: str) -> bool:
    """Whether words are in one of OTHERS and not in a language, without much doubt."""
    of_all = confidences_of(words, with_others=True)
    return (
        bool(of_all)
        and of_all[language] < PROMPT_CONFIDENCE
        and sum(of_all[code] for code in OTHERS) >= OTHERS_CONFIDENCE
    )


@functools.lru_cache(maxsize=16384)  # some 30 MB; 512 solutions of GSM8K ask about 4,000 texts
def _confidences_of(words: str, with_others: bool) -> dict[str, float]:
    values = _detector(with_others).compute_language_confidence_values(words)
    confidences = {value.language.iso_code_639_1.name.lower(): value.value for value in values}
    used = {words.partition(" ")[0].lower(), *words.split()}
    for code in _COMMON_WORDS.keys() & confidences.keys():
        confidences[code] *= COMMON_WORD_WEIGHT ** len(_COMMON_WORDS[code] & used)
    total = sum(confidences.values())
    return {code: value / total for code, value in confidences.items()} if total else {}


@functools.cache
def _detector(with_others: bool) -> "LanguageDetector":
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = [getattr(IsoCode639_1, code.upper()) for code in LANGUAGES + (OTHERS if with_others else ())]
    return LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()
