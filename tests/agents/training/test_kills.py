"""Training runs and evaluations that are killed before any of their file operations."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ollm_rl.agents.evaluation.free_running as evaluation_module
import ollm_rl.agents.training.trainer as trainer_module
from ollm_rl.agents.evaluation.config import EvalConfig
from ollm_rl.agents.evaluation.free_running import run_eval
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.agents.training.trainer import train
from ollm_rl.options.model import OptionModel
from ollm_rl.runs import last_checkpoint
from ollm_rl.safekeeping.outputs import is_temporary
from tests.faults import killed_before, was_killed
from tests.training_runs import ONES, assert_equal_runs, config, naming


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes time and has nothing to do with files."""
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr("ollm_rl.runs.origin", dict)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith("events.")}


def test_a_run_that_is_killed_before_any_file_operation_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    settings: dict[str, Any] = {"iterations": 2, "episodes": 8, "keep_checkpoints": 1}
    settings |= {"ratio": "topr", "replay": 1, "replay_steps": 1}
    new, tokenizer = trainer_module.new_policy(config(tmp_path, model_folder, data), torch.device("cpu"))
    monkeypatch.setattr(trainer_module, "new_policy", lambda *arguments: (copy.deepcopy(new), tokenizer))
    undisturbed = train(config(tmp_path / "undisturbed", model_folder, data, **settings))
    operation, killed = 0, True
    while killed:
        operation += 1
        run = config(tmp_path / f"{operation}", model_folder, data, **settings)
        with killed_before(operation, run.out, monkeypatch):
            train(run)
        killed = was_killed()
        if last_checkpoint(run.out):
            load_policy(str(run.out))
            json.loads((run.out / "run.json").read_text())
        train(run)
        assert_equal_runs(run.out, undisturbed)
        assert files(run.out) == files(undisturbed), "a kill left something behind"
        shutil.rmtree(run.out)
    assert operation > 25


def test_an_evaluation_that_is_killed_before_any_file_operation_gives_the_same_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    loaded = load_policy(str(model_folder))
    monkeypatch.setattr(evaluation_module, "load_policy", lambda *arguments, **settings: loaded)

    def settings(name: str) -> EvalConfig:
        common: dict[str, Any] = {"num_slots": 2, "max_new_tokens": 3, "sample": True, "device": "cpu"}
        return EvalConfig(model=[str(model_folder)], data=[data], out=tmp_path / name, **common)

    def numbers(name: str) -> list[dict[str, Any]]:
        results = json.loads((tmp_path / name / "results.json").read_text())
        volatile = ("eval_seconds", "command", "commit", "machine", "versions")
        return [{key: value for key, value in row.items() if key not in volatile} for row in results]

    (undisturbed,) = run_eval(settings("undisturbed"))
    operation, killed = 0, True
    while killed:
        operation += 1
        name = str(operation)
        with killed_before(operation, tmp_path / name, monkeypatch):
            run_eval(settings(name))
        killed = was_killed()
        (result,) = run_eval(settings(name))
        assert result["completions"] == undisturbed["completions"]
        assert numbers(name) == numbers("undisturbed")
        assert not [path for path in (tmp_path / name).iterdir() if is_temporary(path)]
    assert operation > 12
