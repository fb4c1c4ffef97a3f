"""The benchmark of GPUs: its table of one against several."""

import json
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.experiments.bench import gpus


def test_the_table_has_medians_and_the_ratios_of_rounds() -> None:
    def figures(speed: float, communication: float) -> gpus.Figures:
        return {"episodes_per_second": speed, "seconds_communication": communication}

    measured = {"learner": {"one": [figures(10, 0), figures(20, 0)], "several": [figures(15, 1), figures(40, 3)]}}
    _, _, speed, communication = gpus.table(measured, 2).splitlines()
    assert speed == "| learner | episodes_per_second | 15 | 27.5 | 1.750 (1.500, 2.000) |"
    assert communication == "| learner | seconds_communication | 0 | 2 | nan (nan, nan) |"


@pytest.mark.parametrize(("chosen", "expected"), [([], {8192, 4096}), (["--episodes", "64"], {64})])
def test_each_of_two_workers_refills_its_slots_many_times_unless_fewer_episodes_are_asked_for(
    chosen: list[str], expected: set[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: set[int] = set()

    def run(words: list[str], **placed: Any) -> None:
        out = Path(words[words.index("--out") + 1])
        out.mkdir()
        seconds = {"seconds_rollout": 3, "seconds_update": 1, "seconds_communication": 0}
        (out / "metrics.json").write_text(json.dumps([{**seconds, "completion_tokens": 30, "reward": 0.5}]))
        asked.add(int(words[words.index("--episodes") + 1]))

    monkeypatch.setattr(gpus, "run", run)
    arguments = ["--cases", "workers", "learner", "--model", "options", "--rounds", "1", "--warm-up-iterations", "0"]
    monkeypatch.setattr("sys.argv", ["gpus", *arguments, *chosen])
    gpus.main()
    assert asked == expected
    speed = max(expected) / 4
    assert f"| workers | tokens_per_second | {30 * speed:,.4g} | {30 * speed:,.4g} |" in capsys.readouterr().out


def test_workers_without_a_model_are_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpus", "--cases", "workers"])
    with pytest.raises(SystemExit):
        gpus.main()
    assert "--model is needed" in capsys.readouterr().err
