"""Rewards of a finished completion: plain functions, one a term, and their weighted sum.

Correctness alone is the default. The other terms are shaping: they can be had without a right answer, so a policy that
earns them while correctness stands still games them; each is logged apart for that.
"""

import re
from collections.abc import Mapping

from ollm_rl.answers.pool import Verdict
from ollm_rl.errors import UsageError
from ollm_rl.metrics.language import switches_language

TERMS = ("correctness", "format", "length", "language", "repetition")
CORRECTNESS_ALONE: Mapping[str, float] = {"correctness": 1.0}
REPEATED_WORDS = 4  # length of the sequences that repetition counts

_WORD = re.compile(r"\w+|[^\w\s]")


def correctness(verdict: Verdict, *, failure: float = 0.0) -> float:
    """1 for a right answer, 0 for a wrong one or none, ``failure`` where the checker broke or ran out of time."""
    return failure if verdict.failed else float(verdict.correct)


def answer_format(verdict: Verdict) -> float:
    """1 if the answer is stated (boxed, after ``####``, "the answer is"), 0 if it has to be guessed from the text."""
    return float(verdict.method not in (None, "last_number"))


def length(tokens: int, max_tokens: int) -> float:
    """From 0 for an empty completion down to -1 for one at the token limit."""
    return -tokens / max_tokens


def language_consistency(question: str, completion: str) -> float:
    """1 if the completion stays in the language of the question, 0 if it leaves it (`ollm_rl.metrics.language`)."""
    return float(not switches_language(question, completion))


def repetition(completion: str) -> float:
    """Minus the share of the sequences of four words or signs that stand in the completion before, in [-1, 0]."""
    words = _WORD.findall(completion)
    sequences = [tuple(words[start : start + REPEATED_WORDS]) for start in range(len(words) - REPEATED_WORDS + 1)]
    return len(set(sequences)) / len(sequences) - 1.0 if sequences else 0.0


def check_weights(weights: Mapping[str, float]) -> None:
    """Refuse weights of terms that do not exist.

    Raises:
        ValueError: With the names there are.
    """
    unknown = [name for name in weights if name not in TERMS]
    if unknown:
        raise UsageError(f"reward term {unknown[0]!r} is unknown; give weights for {', '.join(TERMS)}")


def reward_terms(
    question: str,
    completion: str,
    verdict: Verdict,
    *,
    tokens: int,
    max_tokens: int,
    weights: Mapping[str, float],
    failure: float = 0.0,
) -> dict[str, float]:
    """Correctness and every other term with a weight, each unweighted.

    Args:
        question: What was asked.
        completion: What was written, ``tokens`` long and ``max_tokens`` at most.
        verdict: On the completion's answer.
        tokens: Tokens of the completion.
        max_tokens: Token limit.
        weights: By the names in ``TERMS``; a term without one, or with weight 0, is not computed.
        failure: See `correctness`.
    """
    terms = {
        "format": lambda: answer_format(verdict),
        "length": lambda: length(tokens, max_tokens),
        "language": lambda: language_consistency(question, completion),
        "repetition": lambda: repetition(completion),
    }
    wanted = {name: term() for name, term in terms.items() if weights.get(name)}
    return {"correctness": correctness(verdict, failure=failure), **wanted}


def total(terms: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The reward: the weighted sum of terms."""
    return sum(weights.get(name, 0.0) * value for name, value in terms.items())
