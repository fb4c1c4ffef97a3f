"""A run that can no longer learn says so once."""

from ollm_rl.agents.training.collapse import collapse_warning

LIVELY = {"reward_correctness": 0.3, "entropy": 0.5, "mixed_groups": 0.4, "live_share": 0.2}


def warnings(*changes: dict[str, float]) -> list[str | None]:
    """The warning after every iteration."""
    history = [LIVELY | change for change in changes]
    return [collapse_warning(history[: end + 1]) for end in range(len(history))]


def test_a_run_that_learns_is_not_warned() -> None:
    assert warnings({}, {}, {"mixed_groups": 0.0}, {}, {"entropy": 0.001}, {}) == [None] * 6


def test_a_dead_entropy_is_told_once_with_what_to_change() -> None:
    found = warnings({}, {}, *[{"entropy": 0.009}] * 5)
    assert found[:4] == [None] * 4 and found[5:] == [None] * 2
    assert found[4] is not None
    assert "entropy 0.009 nats" in found[4] and "lower learning_rate, or give kl_coef" in found[4]


def test_groups_of_equal_rewards_are_told() -> None:
    (*before, found) = warnings({}, *[{"mixed_groups": 0.02}] * 3)
    assert before == [None] * 3
    assert (
        found is not None
        and found.startswith("only 2% of the groups hold different rewards")
        and "raise group_size" in found
    )


def test_a_solved_task_is_no_collapse() -> None:
    solved = {"reward_correctness": 0.97, "entropy": 0.0, "mixed_groups": 0.0}
    assert warnings({}, *[solved] * 5) == [None] * 6


def test_one_option_has_no_choice_to_lose() -> None:
    one = {"reward_correctness": 0.3, "entropy": 0.0, "mixed_groups": 0.0, "live_share": 0.0}
    assert warnings(*[one] * 5) == [None] * 5


def test_runs_without_groups_are_judged_by_their_entropy_only() -> None:
    assert warnings(*[{"mixed_groups": float("nan")}] * 4) == [None] * 4
