"""Which of a problem's completions is the answer, with the verifier (oracle) and without."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ollm_rl.comparison import compare
from ollm_rl.quantities import clean
from ollm_rl.verify import Verdict


@dataclass(frozen=True)
class Candidate:
    """A finished completion.

    Attributes:
        text: Without special tokens.
        log_prob: Of its tokens in nats, options added up by token.
        value: The value head's estimate at its last h_t.
        spent: Tokens generated for its problem until it was finished.
        vote: Its weight in the majority.
        verdict: The verifier's.
    """

    text: str
    log_prob: float
    value: float
    spent: int
    vote: float
    verdict: Verdict


Chooser = Callable[[Sequence[Candidate]], Candidate]


def by_oracle(found: Sequence[Candidate]) -> Candidate:
    """A right one if there is any: knows the reference answer."""
    return next((candidate for candidate in found if candidate.verdict.correct), found[0])


def by_likelihood(found: Sequence[Candidate]) -> Candidate:
    """The most probable one."""
    return max(found, key=lambda candidate: candidate.log_prob)


def by_value(found: Sequence[Candidate]) -> Candidate:
    """The one of which the value head expects most."""
    return max(found, key=lambda candidate: candidate.value)


def by_majority(found: Sequence[Candidate]) -> Candidate:
    """The most probable one of those that state the answer with the most votes.

    Answers are one if they are equal as text, as numbers or as lists of numbers; completions without an answer do not
    vote. Equal votes go to the more probable answer.
    """
    names: list[str] = []
    stated: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in found:
        if candidate.verdict.extracted is None:
            continue
        answer = clean(candidate.verdict.extracted)
        name = next((name for name in names if compare(answer, name)), None)
        if name is None:
            names.append(name := answer)
        stated[name].append(candidate)
    if not stated:
        return by_likelihood(found)
    groups = [(sum(voter.vote for voter in voters), by_likelihood(voters)) for voters in stated.values()]
    return max(groups, key=lambda group: (group[0], group[1].log_prob))[1]


CHOOSERS: dict[str, Chooser] = {
    "oracle": by_oracle,
    "majority": by_majority,
    "likelihood": by_likelihood,
    "value": by_value,
}


def correct_at(found: Sequence[Candidate], choice: str, budget: float = math.inf) -> bool:
    """Whether the choice among what was finished within so many tokens is right; nothing finished is not."""
    there = [candidate for candidate in found if candidate.spent <= budget]
    return bool(there) and CHOOSERS[choice](there).verdict.correct
