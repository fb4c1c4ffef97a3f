"""The course of the learning rate in reinforcement learning."""

from pathlib import Path
from typing import Any

import pytest

from ollm_rl.agents.training.trainer import train
from ollm_rl.agents.training.update import learning_rate
from ollm_rl.errors import UsageError
from ollm_rl.options.model import OptionModel
from tests.training_runs import ONES, assert_equal_runs, config, history, naming


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ({"warmup_iterations": 4}, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]),
        ({"lr_schedule": "linear", "warmup_iterations": 2}, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        (
            {"lr_schedule": "cosine"},
            [1.0, 0.9330127, 0.75, 0.5, 0.25, 0.0669873],
        ),  # (1 + cos(30 degrees)) / 2 and so on
    ],
)
def test_learning_rates_are_those_worked_by_hand(changes: dict[str, Any], expected: list[float]) -> None:
    settings = config(Path("x"), Path("m"), "arith", iterations=6, learning_rate=1.0, **changes)
    assert [learning_rate(settings, iteration) for iteration in range(6)] == pytest.approx(expected)


def test_a_run_follows_its_schedule_after_a_stop_too_and_its_length_is_fixed(
    tmp_path: Path, model_folder: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    monkeypatch.setattr("ollm_rl.runs.origin", dict)
    changes = {"lr_schedule": "linear", "warmup_iterations": 1}
    whole = train(config(tmp_path / "whole", model_folder, data, **changes))
    assert [row["learning_rate"] for row in history(whole)] == pytest.approx([0.01, 0.01, 0.02 / 3, 0.01 / 3])
    stopped = config(tmp_path / "stopped", model_folder, data, **changes)
    train(stopped, lambda row: row["iteration"] < 1)
    assert_equal_runs(train(stopped), whole)
    with pytest.raises(UsageError, match="iterations is 4 there, 5 here"):
        train(config(tmp_path / "whole", model_folder, data, iterations=5, **changes))


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(UsageError, match="warmup_iterations=5 is more than iterations=4; lower it"):
        config(Path("x"), Path("m"), "arith", warmup_iterations=5)
