"""Episodes of similar length share a pass: as many passes as pay, within their tokens."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from ollm_rl.agents.training.passes import grouped, starting_tokens


def tokens(sizes: Sequence[int], groups: Sequence[Sequence[int]]) -> list[int]:
    return [len(group) * max(sizes[index] for index in group) for group in groups]


@pytest.mark.parametrize(
    ("overhead", "expected"),
    [
        (1, [[0, 1], [2], [3], [4]]),
        (15, [[0, 1], [2], [3, 4]]),  # 80 + 90 + 15 is more than 2 * 90, 20 + 40 + 15 less than 3 * 40
        (100, [[0, 1], [2, 3, 4]]),  # 20 + 3 * 90 is less than 3 * 40 + 2 * 90
        (500, [[0, 1, 2, 3, 4]]),  # 5 * 90 = 450 and 500, in place of 290 and 1,000
    ],
)
def test_passes_are_split_where_that_saves_more_padding_than_a_pass_costs(
    overhead: int, expected: list[list[int]]
) -> None:
    assert grouped([10, 10, 40, 80, 90], limit=1000, overhead=overhead) == expected


def test_an_episode_beyond_the_limit_is_a_pass_of_its_own() -> None:
    assert grouped([5, 5, 30, 31], limit=12, overhead=10) == [[0, 1], [2], [3]]
    assert grouped([], limit=12, overhead=10) == []


def test_no_other_groups_take_less_time() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sizes, limit, overhead = sorted(rng.integers(1, 40, 8).tolist()), 90, int(rng.integers(1, 60))
        best = min(
            sum(tokens(sizes, groups)) + overhead * len(groups)
            for count in range(8)
            for cuts in itertools.combinations(range(1, 8), count)
            if (groups := [list(range(*ends)) for ends in itertools.pairwise([0, *cuts, 8])])
            and max(tokens(sizes, groups)) <= limit
        )
        found = grouped(sizes, limit=limit, overhead=overhead)
        assert sum(found, []) == list(range(8))
        assert max(tokens(sizes, found)) <= limit
        assert sum(tokens(sizes, found)) + overhead * len(found) == best


def test_starting_a_pass_counts_more_tokens_of_a_small_model_than_of_a_large_one() -> None:
    # An H100 computes 1e13 operations in about 0.05 s; a token takes two for every parameter.
    assert [starting_tokens(size, "cuda") for size in (134_515_008, 1_543_714_304)] == [37_170, 3_238]
    assert starting_tokens(134_515_008, "cpu") == 128
