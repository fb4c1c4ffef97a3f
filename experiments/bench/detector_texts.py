"""Texts that are known to switch language or to be degenerate, or not to, made from problems with solutions.

Spliced and whole completions test the detector of language switching. Corrupted and sound ones test degeneracy.
"""

import random
import re
import string
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ollm_rl.problems.problem import Problem

SPLICED = 20  # texts per kind, language and source of English
CORRUPTED = 25  # texts per corruption and source of solutions
SOUND = 400  # sound texts per source of solutions
LETTERS = 40  # fewest letters, outside formulas, in each half of a solution that is cut
DENSITY = {"ja": 3, "zh": 4}  # English letters per character

_SENTENCE_END = re.compile(r"(?<=[.!?।。！？])\s+|(?<=[।。！？])|\n+")
_FORMULA = re.compile(r"\$[^$]{1,60}\$")
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
_NO_PROSE = re.compile(r"\$[^$]*\$|\\\[.*?\\\]|\\begin\{.*?\\end\{[^}]*\}|\\[a-zA-Z]+", re.DOTALL)
_ENGLISH_WORD = re.compile(r"(?<!\\)\b[a-zA-Z]+")
_BOX = re.compile(r"\\f?box(?:ed)?")


class Case(NamedTuple):
    """A completion with its prompt, its kind of change, and the flag or verdict that it should get ("" for none)."""

    kind: str
    prompt: str
    completion: str
    truth: str


def spliced(problems: Mapping[str, Sequence[Problem]], rng: random.Random) -> Iterator[Case]:
    """Completions whose second half is in a different language from the prompt and the first half.

    - "LANGUAGE into English": the first half of a GSM8K or MATH solution, formulas of its second half, and text of MGSM
      questions in another language, with as many letters as the first half.
    - "English into LANGUAGE": the prompt is an MGSM question. The completion is text of other questions in its language
      and the second half of a GSM8K or MATH solution, with equally many letters.
    - "exemplars": the first half of a worked MGSM exemplar and the second half of the same exemplar in another
      language, cut at the end of a sentence and in the middle of the text.

    Args:
        problems: By file name: ``mgsm_dev``, ``mgsm_exemplars``, ``gsm8k_train`` and ``math_train``.
        rng: Draws the texts.
    """
    native = defaultdict(list)
    for problem in problems["mgsm_dev"]:
        native[problem.language].append(problem.question)
    for name in ("gsm8k_train", "math_train"):
        english = [problem for problem in problems[name] if min(map(letters, halves(problem.solution))) >= LETTERS]
        for code in sorted(native.keys() - {"en"}):
            for problem in rng.sample(english, SPLICED):
                first, second = halves(problem.solution)
                prompt, *others = rng.sample(native[code], 12)
                formulas = _FORMULA.findall(second)[:3]
                foreign = _as_long_as(first, others, DENSITY.get(code, 1))
                yield Case(f"{code} into English", problem.question, " ".join([first, *formulas, foreign]), "switched")
                foreign = _as_long_as(second, others, DENSITY.get(code, 1))
                yield Case(f"English into {code}", prompt, f"{foreign} {second}", "switched")
    exemplars = {(problem.id.rpartition("-")[2], problem.language): problem for problem in problems["mgsm_exemplars"]}
    for (number, code), exemplar in exemplars.items():
        for (other_number, other_code), other in exemplars.items():
            if number == other_number and code != other_code:
                for kind, cut in (("at a sentence's end", halves), ("in the middle", cut_within)):
                    completion = f"{cut(exemplar.solution)[0]} {cut(other.solution)[1]}"
                    yield Case(f"exemplars, cut {kind}", exemplar.question, completion, "switched")


def whole(problems: Mapping[str, Sequence[Problem]]) -> Iterator[Case]:
    """Completions in their prompt's language: solutions to their questions, and MGSM questions after other ones."""
    for name in ("gsm8k_train", "math_train", "mgsm_exemplars"):
        for problem in problems[name]:
            yield Case(name, problem.question, problem.solution, "")
    questions = sorted(problems["mgsm_dev"], key=lambda problem: problem.language)
    for first, second in zip(questions, questions[1:], strict=False):
        if first.language == second.language:
            yield Case("mgsm_dev", first.question, second.question, "")


def degenerate(problems: Mapping[str, Sequence[Problem]], rng: random.Random) -> Iterator[Case]:
    """Solutions of GSM8K and MATH: corrupted ones, each in one way, and sound ones.

    Both halves of a solution have at least LETTERS letters. The first half has a number, which a loop does not change.
    So a corruption of one kind never yields another kind too. The truth of a case is a flag of `degeneracy`, or "". The
    detector is given whether a completion was cut off by the token limit, so ``no_end`` is known.
    """
    pieces = [problem.question for problem in problems["mgsm_dev"]]
    corruptions: list[tuple[str, str, Callable[[str], str]]] = [
        ("loop", "a sentence to the end", lambda text: _sentence_loop(text, rng)),
        ("loop", "2 to 5 words to the end", lambda text: _word_loop(text, rng.randint(2, 5), rng.randint(6, 15), rng)),
        ("loop", "one word to the end", lambda text: _word_loop(text, 1, rng.randint(15, 40), rng)),
        ("loop", "all of it, 4 to 6 times", lambda text: " ".join([text] * rng.randint(4, 6))),
        ("loop", "two or three sentences in random order", lambda text: _mixed_loop(text, rng)),
        ("gibberish", "letters of words at random", lambda text: _random_letters(text, rng)),
        ("gibberish", "characters permuted", lambda text: _permuted(text, rng)),
        ("gibberish", "characters of the second half permuted", lambda text: _late(text, rng)),
        ("gibberish", "keys at random", lambda text: "".join(rng.choices(string.printable[:95], k=len(text)))),
        ("gibberish", "pieces of words of 11 languages", lambda text: _soup(len(text), pieces, rng)),
        ("no_answer", "numbers and boxes taken out", _without_answer),
        ("no_answer", "numbers and boxes taken out, first half", lambda text: _without_answer(halves(text)[0])),
        ("empty", "white space alone", lambda text: re.sub(r"\S", "", text)),
        ("empty", "nothing", lambda text: ""),
        ("no_end", "cut off in the middle", lambda text: text[: len(text) // 2]),
    ]
    for name in ("gsm8k_train", "math_train"):
        usable = [problem for problem in problems[name] if _can_be_corrupted(problem.solution)]
        for problem in rng.sample(usable, SOUND):
            yield Case("sound", problem.question, problem.solution, "")
        for flag, kind, corrupt in corruptions:
            for problem in rng.sample(usable, CORRUPTED):
                yield Case(kind, problem.question, corrupt(_DRAWING.sub("", problem.solution)), flag)


def _can_be_corrupted(solution: str) -> bool:
    first, second = halves(solution)
    return min(letters(first), letters(second)) >= LETTERS and bool(re.search(r"\d", first))


def sentences(text: str) -> list[str]:
    """Sentences that are not blank. A text with only one (Thai has no full stop) is split at spaces instead."""
    parts = [part for part in _SENTENCE_END.split(text) if part.strip()]
    return parts if len(parts) > 1 else text.split()


def halves(text: str) -> tuple[str, str]:
    """A text without drawings, cut at the sentence end that gives both halves the most similar numbers of letters."""
    parts = sentences(_DRAWING.sub("", text))
    cuts = [(" ".join(parts[:end]), " ".join(parts[end:])) for end in range(1, len(parts))]
    return min(cuts, key=lambda cut: abs(letters(cut[0]) - letters(cut[1])), default=(text, ""))


def cut_within(text: str) -> tuple[str, str]:
    """A text cut at the first space after its middle, or in its middle if there is none."""
    middle = text.find(" ", len(text) // 2)
    middle = len(text) // 2 if middle < 0 else middle
    return text[:middle], text[middle:].lstrip()


def letters(text: str) -> int:
    """Number of letters in a text, without those in formulas."""
    return sum(character.isalpha() for character in _NO_PROSE.sub("", text))


def _as_long_as(text: str, native: Sequence[str], density: int) -> str:
    """Sentences of ``native`` with the number of letters of ``text`` divided by ``density``, or just above."""
    num_letters, chosen = letters(text) / density, ""
    for sentence in (sentence for other in native for sentence in sentences(other)):
        chosen += f" {sentence}"
        if letters(chosen) >= num_letters:
            break
    return chosen.strip()


def _sentence_loop(text: str, rng: random.Random) -> str:
    first, second = halves(text)
    parts = [first, *sentences(second)]
    at = rng.randrange(1, len(parts))
    # Short sentences ("So 5.") must repeat more often to be detected: at least 60 characters of loop.
    looped = f" {parts[at]}" * max(rng.randint(5, 12), 60 // len(parts[at]) + 1)
    return " ".join(parts[:at]) + looped[: len(looped) - rng.randrange(len(parts[at]))]


def _word_loop(text: str, count: int, times: int, rng: random.Random) -> str:
    first, second = halves(text)
    words = second.split()
    at = rng.randrange(len(words) - count)
    return " ".join([first, *words[:at], *words[at : at + count] * times])


def _mixed_loop(text: str, rng: random.Random) -> str:
    parts = sentences(text)
    pool = parts[-rng.randint(2, 3) :]
    return " ".join(parts + rng.choices(pool, k=20))


def _random_letters(text: str, rng: random.Random) -> str:
    return _ENGLISH_WORD.sub(lambda word: "".join(rng.choices(string.ascii_lowercase, k=len(word.group()))), text)


def _permuted(text: str, rng: random.Random) -> str:
    return "".join(rng.sample(text, len(text)))


def _late(text: str, rng: random.Random) -> str:
    first, second = halves(text)
    return f"{first} {_permuted(second, rng)}"


def _soup(length: int, texts: Sequence[str], rng: random.Random) -> str:
    soup = ""
    while len(soup) < length:
        text = rng.choice(texts)
        at = rng.randrange(len(text))
        soup += text[at : at + rng.randint(1, 5)]
    return soup


def _without_answer(text: str) -> str:
    return re.sub(r"\d+", "", _BOX.sub("", text)).replace("answer", "thing")
