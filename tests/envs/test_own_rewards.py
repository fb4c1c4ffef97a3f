"""Rewards of one's own: files and functions, their calls, failures and errors, and the environments with them."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from ollm_rl.envs.own_rewards import OwnReward, own_rewards, score
from ollm_rl.errors import MissingError, UsageError
from tests.envs.test_text_gen import ID, PROBLEMS, RIGHT, ids_of, settings

FILE = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Unit:
    size: float

def brevity(prompts, completions, **columns):
    return [-len(completion) / Unit(10).size for completion in completions]

async def known(completions, answer, **rest):
    return [float(right in completion) for completion, right in zip(completions, answer)]

def verdict(completions, **columns):
    return [0.0 for _ in completions]
"""
COLUMNS = [{"id": str(n), "question": f"{n}?", "solution": "", "answer": str(n), "language": "en"} for n in range(3)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def lengths(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def fussy(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    if "bad" in completions:
        raise ValueError("it is bad")
    return [1.0 for _ in completions]


def test_functions_of_a_file_get_weights_and_what_the_problems_hold(file: Path) -> None:
    rewards = own_rewards([f"{file}:brevity=0.5", f"{file}:known"])
    assert [(one.name, one.weight) for one in rewards] == [("brevity", 0.5), ("known", 1.0)]
    assert [one.terms for one in score(rewards, COLUMNS[:2], ["a 0", "b"])] == [
        {"brevity": -0.3, "known": 1.0},
        {"brevity": -0.1, "known": 0.0},
    ]


def test_a_failure_is_that_of_its_completion_and_the_others_keep_their_values() -> None:
    with pytest.warns(RuntimeWarning) as warned:
        scores = score(own_rewards([fussy, lengths]), COLUMNS, ["good", "bad", "x"], failure=-0.5)
    assert [one.terms for one in scores] == [
        {"fussy": 1.0, "lengths": 4.0},
        {"fussy": -0.5, "lengths": 3.0},
        {"fussy": 1.0, "lengths": 1.0},
    ]
    assert [one.faults for one in scores] == [{}, {"fussy": "ValueError: it is bad"}, {}]
    assert "fussy failed on 1 of 3 completions, first on that of problem '1' (ValueError: it is bad): ...'bad'" in str(
        warned[0].message
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "3", [1], 1e39, torch.ones(2), np.ones(2)])
def test_a_value_that_is_no_finite_number_is_a_failure(value: Any) -> None:
    def odd(prompts: list[str], completions: list[str], **columns: Any) -> list[Any]:
        return [value, None, 2]

    with pytest.warns(RuntimeWarning, match="which is no finite number"):
        first, second, third = score(own_rewards(odd), COLUMNS, ["a", "b", "c"])
    assert (first.terms, list(first.faults)) == ({"odd": 0.0}, ["odd"])
    assert (second.terms, second.faults) == ({}, {})  # the function says nothing about it
    assert (third.terms, third.faults) == ({"odd": 2.0}, {})


def test_completions_whose_columns_differ_get_those_that_all_have() -> None:
    def solved(prompts: list[str], completions: list[str], solution: list[str], **columns: Any) -> list[float]:
        return [1.0 for _ in solution]

    few = [*COLUMNS[:1], {"id": "9", "question": "9?", "answer": "9"}]
    assert [one.terms for one in score(own_rewards(lengths), few, ["a", "bc"])] == [{"lengths": 1.0}, {"lengths": 2.0}]
    with pytest.warns(RuntimeWarning, match="solved failed on 1 of 2 completions, first on that of problem '9'"):
        assert [one.terms for one in score(own_rewards(solved), few, ["a", "bc"])] == [{"solved": 1.0}, {"solved": 0.0}]


def test_tensors_and_async_functions_work_within_a_running_loop_too() -> None:
    async def slow(prompts: list[str], completions: list[str], **columns: Any) -> torch.Tensor:
        await asyncio.sleep(0)
        if "bad" in completions:
            raise RuntimeError("no")
        return torch.ones(len(completions))

    async def notebook() -> list[Any]:
        return score(own_rewards(slow), COLUMNS, ["a", "bad", "c"])

    with pytest.warns(RuntimeWarning, match="slow failed on 1 of 3"):
        scores = asyncio.run(notebook())
    assert [one.terms["slow"] for one in scores] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mine.py", "reward='mine.py' names no function; give FILE.py:FUNCTION"),
        ("mine:brevity", "names no function"),
        ("mine.py:brevity=much", "has no number as its weight"),
        ("mine.py:brevity=1e9", "the weight of brevity=1000000000.0 must be at least -1,000 and at most 1,000"),
        ("mine.py:nothing", "mine.py holds no function 'nothing'"),
        ("mine.py:Unit", r"reward Unit has another signature .*; write def Unit\(prompts, completions, \*\*columns\)"),
        ("broken.py:f", r"broken.py cannot be run \(NameError: name 'nowhere' is not defined\); correct it"),
        ("ends.py:f", r"ends.py cannot be run \(SystemExit: 3\)"),
        (["mine.py:brevity", "mine.py:brevity=2"], "two functions of reward are named 'brevity'; rename one"),
        (lambda prompts, completions, **columns: [], "reward '<lambda>' cannot have this name"),
        (3, "reward=3 is no function"),
        ("mine.py:verdict", "reward 'verdict' cannot have this name; rename it"),
        (lambda completions: [], "cannot have this name"),
    ],
)
def test_a_reward_that_does_not_fit_is_refused_in_one_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, given: Any, message: str
) -> None:
    monkeypatch.chdir(file.parent)
    Path("broken.py").write_text("x = nowhere")
    Path("ends.py").write_text("raise SystemExit(3)")
    with pytest.raises(UsageError, match=message) as raised:
        own_rewards(given)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_a_wrong_number_of_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no\.py' does not exist; give FILE\.py:FUNCTION"):
        own_rewards(f"{tmp_path}/no.py:f")

    def few(prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return 1.0

    with pytest.raises(UsageError, match="reward few returned 1.0 for 3 completions; return a list with a number each"):
        score(own_rewards(few), COLUMNS, ["a", "b", "c"])


def play(env: gymnasium.Env[Any, Any]) -> tuple[float, dict[str, Any]]:
    """Answer the first problem, and return the last reward and info."""
    env.reset(seed=0, options={"problem": 0})
    reward: Any = 0.0
    info: dict[str, Any] = {}
    for token in ids_of(RIGHT):
        _, reward, terminated, truncated, info = env.step(token)
        if terminated or truncated:
            break
    return float(reward), info


@pytest.mark.parametrize(
    ("reward", "weights", "expected"),
    [
        (lengths, {}, 16.0),  # in place of correctness
        ([lengths], {"correctness": 2.0}, 18.0),
        (OwnReward(lengths, "size", 0.5), {"correctness": 0.0}, 8.0),
    ],
)
def test_an_environment_pays_rewards_of_ones_own(
    reward: Callable[..., Any], weights: dict[str, float], expected: float
) -> None:
    changes = {"action_space": "tokens", "max_new_tokens": len(RIGHT), "problems": PROBLEMS[:1]}
    given = {"reward_weights": weights} if weights else {}
    env = gymnasium.make(ID, **settings(**changes, **given, reward=reward))
    paid, info = play(env)
    assert paid == expected
    assert info["correctness"] == 1.0 and 16.0 in (info.get("lengths"), info.get("size"))


def test_a_failure_in_an_environment_is_said_in_its_info() -> None:
    def broken(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        raise KeyError("x")

    changes = {"action_space": "tokens", "max_new_tokens": 3}
    env = gymnasium.make(ID, **settings(**changes, reward=[broken, lengths]))
    with pytest.warns(RuntimeWarning, match="broken failed on 1 of 1 completions"):
        paid, info = play(env)
    assert (paid, info["broken"], info["broken_failure"]) == (3.0, 0.0, "KeyError: 'x'")


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(UsageError, match="all weights in {'lengths': 0.0} are 0"):
        gymnasium.make(ID, **settings(reward=OwnReward(lengths, weight=0.0)))
