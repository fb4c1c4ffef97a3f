"""Metrics in services, by stand-ins of their packages: what they get, runs that go on, and services that fail."""

import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ollm_rl.agents import train_agent
from ollm_rl.cli import main
from ollm_rl.errors import UsageError
from ollm_rl.pretrain.sft import run_sft
from tests.pretrain.test_sft import config as sft_config
from tests.training_runs import config


class Wandb(ModuleType):
    """Stands in for the package: remembers how runs were begun, and what they got."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None, origin="a stand-in")
        self.begun: list[dict[str, Any]] = []
        self.rows: list[dict[str, float]] = []
        self.finished = 0
        self.refusal: Exception | None = None
        self.full: Exception | None = None

    def init(self, **arguments: Any) -> SimpleNamespace:
        if self.refusal:
            raise self.refusal
        self.begun.append(arguments)
        return SimpleNamespace(id="a1", define_metric=lambda *_, **__: None, log=self.log, finish=self.finish)

    def log(self, row: dict[str, float]) -> None:
        if self.full:
            raise self.full
        self.rows.append(row)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    package = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return package


def test_a_run_reports_every_iteration_and_goes_on_where_it_was(
    wandb: Wandb, tmp_path: Path, model_folder: Path, data: str
) -> None:
    out = tmp_path / "run"
    train_agent(config(out, model_folder, data, iterations=2, report_to=["wandb"]))
    metrics = json.loads((out / "metrics.json").read_text())
    assert [row["rollout/reward"] for row in wandb.rows] == [row["reward"] for row in metrics]
    assert [row["step"] for row in wandb.rows] == [16, 32]
    assert wandb.begun[0] | {"config": None} == {
        "project": "huggingface",
        "name": str(out),
        "id": None,
        "resume": "allow",
        "config": None,
    }
    assert wandb.begun[0]["config"]["learning_rate"] == 1e-2 and wandb.finished == 1
    assert not list(out.glob("events.*"))  # TensorBoard was not asked for
    train_agent(config(out, model_folder, data, iterations=3, report_to=["wandb", "tensorboard"]))
    assert wandb.begun[1]["id"] == "a1" and wandb.rows[-1]["step"] == 48
    assert list(out.glob("events.*"))


def test_supervised_training_reports_its_lines(wandb: Wandb, tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "solved.jsonl").write_text(json.dumps({"question": "1+1?", "solution": "#### 2", "answer": 2}))
    backbone, data = str(model_folder.parent / "backbone"), f"jsonl:{tmp_path}/solved.jsonl"
    short = {"max_steps": 2, "save_steps": 2, "logging_steps": 1}
    out = run_sft(sft_config(tmp_path / "sft", backbone, data, **short, report_to=["wandb"]))
    metrics = json.loads((out / "metrics.json").read_text())
    losses = [row["loss"] for row in metrics if "loss" in row]
    assert [row["train/loss"] for row in wandb.rows if "train/loss" in row] == losses and len(losses) == 2
    # Of all steps, and without the times of this start.
    last = {name: metrics[-1][name] for name in ("train_loss", "total_flos")}
    assert wandb.rows[-1] == {"step": 2} | {f"train/{name}": value for name, value in last.items()}
    assert wandb.finished == 1 and not list(out.rglob("events.*"))


def test_a_service_that_refuses_ends_the_run_before_any_work_and_one_that_fails_later_is_left_out(
    wandb: Wandb, tmp_path: Path, model_folder: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path / "run", model_folder, data, iterations=1, report_to=["wandb"])
    wandb.refusal = RuntimeError("no API key.\nUse wandb login")
    with pytest.raises(UsageError) as raised:
        train_agent(settings)
    assert str(raised.value) == (
        "report_to='wandb' does not work (no API key. Use wandb login); log in there, or leave it out"
    )
    assert not (settings.out / "checkpoints").exists()
    wandb.refusal, wandb.full = None, OSError("quota exceeded")
    train_agent(settings)
    assert "run: wandb has failed and gets no more metrics (quota exceeded)" in capsys.readouterr().err
    assert len(json.loads((settings.out / "metrics.json").read_text())) == 1


def test_a_service_whose_package_is_missing_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for command in ("sft", "train --model none"):
        assert main([*command.split(), "--report_to", "mlflow", "--out", str(tmp_path / "run")]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line == "ollm-rl: report_to='mlflow' needs the package mlflow; run: pip install mlflow"
    monkeypatch.undo()
    (tmp_path / "wandb").mkdir()  # as the service itself leaves it
    monkeypatch.syspath_prepend(tmp_path)
    if "site-packages" not in str(getattr(find_spec("wandb"), "origin", "")):
        assert main(["sft", "--report_to", "wandb", "--out", str(tmp_path / "run")]) == 2
        assert "needs the package wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
