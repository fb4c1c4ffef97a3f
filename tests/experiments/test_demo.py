"""The demo says which of its stages runs."""

from pathlib import Path
from typing import Any

import pytest

import ollm_rl.experiments.demo as demo
from ollm_rl.experiments.config import DemoConfig


def test_every_stage_has_a_heading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(result: Any) -> Any:
        return lambda config, *_: print(type(config).__name__) or result

    for name, result in {"run_sft": tmp_path, "train": tmp_path, "run_eval": [], "report_methods": []}.items():
        monkeypatch.setattr(demo, name, said(result))
    monkeypatch.setattr(demo, "format_table", lambda rows: "the table")
    assert (
        demo.run_demo(DemoConfig(out=tmp_path / "demo", episodes=64, problems=8)) == tmp_path / "demo" / "report.html"
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines == [
        "[1 of 5] options: the plug-in learns from worked solutions",
        "SFTConfig",
        "[2 of 5] latent: reinforcement learning, 64 episodes",
        "RLConfig",
        "[3 of 5] anchored: reinforcement learning, 64 episodes",
        "RLConfig",
        "[4 of 5] vocabulary: reinforcement learning, 64 episodes",
        "RLConfig",
        "[5 of 5] evaluation on 8 held-out problems, and the report",
        "EvalConfig",
        "PosixPath",
        "the table",
    ]
