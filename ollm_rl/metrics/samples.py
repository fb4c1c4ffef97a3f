"""What several samples of one problem are worth."""

import math
from collections.abc import Sequence

from ollm_rl.answers.comparison import compare
from ollm_rl.answers.spelling import clean


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k samples is correct (Chen et al. 2021, eq. 1).

    Args:
        samples: Number n of independent samples.
        correct: Number c of correct samples.
        k: At most n.

    Raises:
        ValueError: If k is not within 1 to n, or c not within 0 to n.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"k={k} and correct={correct} must fit samples={samples}; take more samples or lower k")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def same_answers(answers: Sequence[str | None]) -> list[list[int]]:
    """Indices of the answers that are equal as text, as numbers or as lists of numbers; None is in no group.

    Groups, and the indices in each, are in the order of the answers.
    """
    groups: list[tuple[str, list[int]]] = []
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        spelled = clean(answer)
        same = next((indices for earlier, indices in groups if compare(spelled, earlier)), None)
        if same is None:
            groups.append((spelled, [index]))
        else:
            same.append(index)
    return [indices for _, indices in groups]


def majority(answers: Sequence[str | None]) -> int:
    """Index of the first sample with the answer that most samples state; of equal votes the earliest answer wins.

    0 if no sample states one.
    """
    return max(same_answers(answers), key=len, default=[0])[0]
