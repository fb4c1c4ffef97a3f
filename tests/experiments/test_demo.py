"""The demo says which of its stages runs."""

from pathlib import Path
from typing import Any

import pytest

import ollm_rl.experiments.demo as demo
from ollm_rl.experiments.config import DemoConfig


def test_every_stage_has_a_heading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(what: str, result: Any = None) -> Any:
        def stage(config: Any, *_: Any) -> Any:
            print(what)
            return config.out if result is None else result

        return stage

    monkeypatch.setattr(demo, "run_sft", says("sft"))
    monkeypatch.setattr(demo, "train", says("train"))
    monkeypatch.setattr(demo, "run_eval", says("eval", []))
    monkeypatch.setattr(demo, "report_methods", says("report", []))
    monkeypatch.setattr(demo, "format_table", lambda rows: "the table")
    out = tmp_path / "demo"
    assert demo.run_demo(DemoConfig(out=out, episodes=64, problems=8)) == out / "report.html"
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines == [
        "[1 of 5] options: the plug-in learns from worked solutions",
        "sft",
        "[2 of 5] latent: reinforcement learning, 64 episodes",
        "train",
        "[3 of 5] anchored: reinforcement learning, 64 episodes",
        "train",
        "[4 of 5] vocabulary: reinforcement learning, 64 episodes",
        "train",
        "[5 of 5] evaluation on 8 held-out problems, and the report",
        "eval",
        "report",
        "the table",
    ]
