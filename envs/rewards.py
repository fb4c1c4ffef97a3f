"""Rewards of a finished completion: one plain function per term, and their weighted sum.

Correctness is the default reward. The other terms are shaping and can be earned without a right answer. A policy that
earns more of them while correctness does not rise games them, so each term is logged separately.
"""

import re
from collections.abc import Mapping

from ollm_rl.answers.pool import Verdict
from ollm_rl.errors import UsageError
from ollm_rl.metrics.language import switches_language
from ollm_rl.settings import Weight, checked

TERMS = ("correctness", "format", "length", "language", "repetition")
CORRECTNESS_ONLY: Mapping[str, float] = {"correctness": 1.0}
REPEATED_WORDS = 4  # length of the sequences that ``repetition`` compares

_WORD = re.compile(r"\w+|[^\w\s]")


def correctness(verdict: Verdict, *, failure: float = 0.0) -> float:
    """1 for a right answer, 0 for a wrong or missing one, ``failure`` if the checker crashed or timed out."""
    return failure if verdict.failed else float(verdict.correct)


def answer_format(verdict: Verdict) -> float:
    """1 if the answer is stated (boxed, after ``####``, "the answer is"), 0 if it has to be guessed from the text."""
    return float(verdict.method not in (None, "last_number"))


def length(tokens: int, max_tokens: int) -> float:
    """0 for an empty completion, falling to -1 for one at the token limit."""
    return -tokens / max_tokens


def language_consistency(question: str, completion: str) -> float:
    """1 if the completion stays in the language of the question, else 0 (`ollm_rl.metrics.language`)."""
    return float(not switches_language(question, completion))


def repetition(completion: str) -> float:
    """Minus the share of the sequences of four words or signs that occurred before in the completion, in [-1, 0]."""
    words = _WORD.findall(completion)
    sequences = [tuple(words[start : start + REPEATED_WORDS]) for start in range(len(words) - REPEATED_WORDS + 1)]
    return len(set(sequences)) / len(sequences) - 1.0 if sequences else 0.0


def all_weights(weights: Mapping[str, float], own: Mapping[str, float] | None = None) -> dict[str, float]:
    """The weights of all terms of a reward, checked.

    Args:
        weights: Weights of the terms in ``TERMS``. ``CORRECTNESS_ONLY``, the default of environments, gives way to
            functions of one's own.
        own: Weights of functions of one's own, by name.

    Raises:
        UsageError: If a term is unknown, a weight is out of range, or all are 0.
    """
    own = own or {}
    if own and weights is CORRECTNESS_ONLY:
        weights = {}
    if not isinstance(weights, Mapping):
        raise UsageError(f"reward_weights={weights!r} is no mapping; give one, such as {{'correctness': 1}}")
    unknown = [name for name in weights if name not in TERMS]
    if unknown:
        raise UsageError(f"reward term {unknown[0]!r} is unknown; give weights for {', '.join(TERMS)}")
    for name, weight in weights.items():
        checked(f"the weight of {name}", weight, Weight)
    if not any({**weights, **own}.values()):
        given = {**weights, **own}
        raise UsageError(f"all weights in {given} are 0, so there is nothing to learn; give one, such as 1")
    return {**weights, **own}


def reward_terms(
    question: str,
    completion: str,
    verdict: Verdict,
    *,
    tokens: int,
    max_tokens: int,
    weights: Mapping[str, float],
    failure: float = 0.0,
    language: float | None = None,
) -> dict[str, float]:
    """Correctness and every other term that has a weight; the values are unweighted.

    Args:
        question: The question of the problem.
        completion: Text of the completion.
        verdict: Verdict on the completion's answer.
        tokens: Number of tokens of the completion, at most ``max_tokens``.
        max_tokens: Token limit.
        weights: Weights by the names in ``TERMS``; a term without a weight, or with weight 0, is not computed.
        failure: See `correctness`.
        language: The term ``language``, if the completion has been measured already.
    """
    terms = {
        "format": lambda: answer_format(verdict),
        "length": lambda: length(tokens, max_tokens),
        "language": lambda: language_consistency(question, completion) if language is None else language,
        "repetition": lambda: repetition(completion),
    }
    weighted = {name: term() for name, term in terms.items() if weights.get(name)}
    return {"correctness": correctness(verdict, failure=failure), **weighted}


def total(terms: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The reward: the weighted sum of the terms."""
    return sum(weights.get(name, 0.0) * value for name, value in terms.items())
