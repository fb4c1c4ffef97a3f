"""A comparison end to end: trials, fresh seeds, evaluations, tables and report; a killed one resumes."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ollm_rl.experiments.compare as compare_module
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.training.run import train_agent
from ollm_rl.cli import main
from ollm_rl.experiments import comparison, ray_tune, tuning
from ollm_rl.experiments.raw import tables_of
from ollm_rl.metrics.reliability import stratified_interval
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.processes import run_process
from tests.tiny_models import save_backbone

TABLES = "comparison.json"


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, one of them tuned, and a control with one option, with a second of training per run."""
    folder = tmp_path_factory.mktemp("compare")
    torch.manual_seed(0)
    model = OptionModel.from_backbone(save_backbone(folder / "backbone"), OptionConfig(num_options=4, width=8))
    with torch.no_grad():
        model.adapter.decoder_out.weight.mul_(30)  # options that lead to different tokens
    model.save_pretrained(folder / "options")
    OptionModel.from_backbone(model.backbone, OptionConfig(num_options=1, width=8)).save_pretrained(folder / "one")
    (folder / "problems.jsonl").write_text('{"question": "Give a?", "answer": "1"}\n{"question": "b?", "answer": "2"}')
    data = f"jsonl:{folder / 'problems.jsonl'}"
    run = {"model": str(folder / "options"), "data": data, "group_size": 4, "max_new_tokens": 8, "num_slots": 8}
    settings = {
        "train": {**run, "episodes": 8},
        "baseline": "vocabulary",
        "methods": {
            "anchored": {
                "train": {"policy": "anchored", "ratio": "topr", "replay": 2, "replay_steps": 2},
                "random": {"learning_rate": {"loguniform": [1e-3, 1e-2]}},
            },
            "vocabulary": {"train": {"action_space": "tokens", "lora_rank": 2}},
            "one option": {"train": {"model": str(folder / "one"), "policy": "latent"}},
        },
        "max_episodes": 16,
        "window": 16,
        "thresholds": [0.5],
        "num_trials": 2,
        "max_widenings": 0,
        "tuning_seeds": [7],
        "seeds": [0, 1],
        "max_concurrent": 1,  # one process of Ray for all runs: importing torch takes longer than a run
        "eval_data": data,
        "eval_limit": 2,
    }
    path = folder / "preset.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def compare(preset: Path, out: Path) -> int:
    return main(["compare", "--config", str(preset), "--out", str(out)])


def run_here(state: Path, configs: dict[str, RLConfig], resources: object, *, finish: Any = None) -> dict[str, str]:
    """Stands in for `run_trials`: runs the trials in this process, one after the other, without Ray."""
    for config in configs.values():
        train_agent(config)
        if finish is not None:
            finish(config)
    return {}


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """Tests of the tables look at their intervals: here they take seconds and are not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "stratified_interval", partial(stratified_interval, num_resamples=20))
        yield


@pytest.fixture(scope="module")
def undisturbed(preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison whose runs were made in this process."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_module, "run_trials", run_here)
        patch.setattr(tuning, "run_trials", run_here)
        assert compare(preset, out) == 0
    return out


def rewards(out: Path) -> dict[str, list[float]]:
    return {
        path.parent.name: [row["reward"] for row in json.loads(path.read_text())]
        for path in sorted((out / "runs").glob("*/metrics.json"))
    }


def test_it_tunes_runs_fresh_seeds_and_writes_tables_and_report(undisturbed: Path) -> None:
    trials = sorted(path.name for path in (undisturbed / "tuning-0" / "trials").iterdir())
    assert trials == ["anchored-00-seed7", "anchored-01-seed7"], "the vocabulary has nothing to tune"
    chosen = json.loads((undisturbed / "chosen.json").read_text())
    assert 1e-3 < chosen["anchored"]["settings"]["learning_rate"] < 1e-2
    methods = ("anchored", "one option", "vocabulary")
    assert list(rewards(undisturbed)) == [f"{method}-seed{seed}" for method in methods for seed in (0, 1)]
    tables = json.loads((undisturbed / TABLES).read_text())
    titles = ["Chosen settings", "Learning", "Until reward 0.5", "After training"]
    assert [table["title"] for table in tables["tables"]] == titles
    (greedy, sampled) = next(row[1:3] for row in tables["tables"][-1]["rows"] if row[0] == "one option")
    assert greedy == sampled and greedy[0] == greedy[1] == greedy[2], "one option leaves nothing to chance or to learn"
    assert tables["seeds"] == [0, 1] and {"command", "commit", "machine"} <= tables.keys()
    assert "### Until reward 0.5" in (undisturbed / "comparison.md").read_text()
    again = "\n\n".join(table.markdown() for table in tables_of(undisturbed / "comparison.parquet"))
    assert again + "\n" == (undisturbed / "comparison.md").read_text(), "the raw file gives the same tables"
    page = (undisturbed / "report.html").read_text()
    assert "Until reward 0.5" in page and "P(fewer episodes)" in page


@pytest.mark.parametrize("failed", ["anchored", "vocabulary"])
def test_a_method_whose_runs_all_failed_is_shown_with_dashes(
    failed: str, preset: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)

    def some_failed(_: Path, configs: dict[str, Any], *__: Any, **___: Any) -> dict[str, str]:
        return {name: "there is nothing to choose" for name in configs if name.startswith(failed)}

    monkeypatch.setattr("ollm_rl.experiments.compare.run_trials", some_failed)
    assert compare(preset, out) == 0
    text = (out / "comparison.md").read_text()
    assert f"| {failed} | 0 | – | – | – |" in text and f"| {failed} | 0 of 0 | –" in text
    assert "\n\n".join(table.markdown() for table in tables_of(out / "comparison.parquet")) + "\n" == text
    assert "Until reward 0.5" in (out / "report.html").read_text()


def test_a_comparison_whose_runs_all_failed_says_why(
    preset: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (undisturbed / "comparison.md").read_text()
    monkeypatch.setattr(
        "ollm_rl.experiments.compare.run_trials", lambda _, configs, *__, **___: dict.fromkeys(configs, "no")
    )
    assert compare(preset, undisturbed) == 2
    assert capsys.readouterr().err == "ollm-rl: all 6 runs failed; anchored-seed0: no\n"
    assert (undisturbed / "comparison.md").read_text() == before


def compare_until_killed(preset: Path, out: Path) -> int:
    """Runs in a process of its own. The second run kills it and itself after its first iteration."""
    comparison = os.getpid()

    def train_until_killed(config: RLConfig, report: Any) -> Path:
        def on_iteration(row: dict[str, float]) -> None:
            if config.out.name == "one option-seed0":
                os.kill(comparison, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
            report(row)

        return train_agent(config, on_iteration)

    pytest.MonkeyPatch().setattr(ray_tune, "train_agent", train_until_killed)
    return compare(preset, out)


def test_a_killed_comparison_resumes_to_the_same_runs(preset: Path, undisturbed: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    assert run_process(log, compare_until_killed, preset, out) == -signal.SIGKILL, log.read_text()
    whole = rewards(undisturbed)
    killed = {"anchored-seed0": whole["anchored-seed0"], "one option-seed0": whole["one option-seed0"][:1]}
    assert rewards(out) == killed and not (out / TABLES).exists()
    assert compare(preset, out) == 0
    assert rewards(out) == whole
    chosen = [json.loads((folder / "chosen.json").read_text()) for folder in (out, undisturbed)]
    assert chosen[0] == chosen[1]
    commands = [json.loads((out / name).read_text())["command"] for name in ("runs/vocabulary-seed1/run.json", TABLES)]
    assert commands[0] == commands[1], "not that of a process of Ray"


def test_a_setting_that_a_run_would_refuse_is_refused_before_anything_runs(
    preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["compare", "--config", str(preset), "--out", str(out), "--train.group_size", "3"]) == 2
    assert "episodes=8 is no multiple of group_size=3; change one" in capsys.readouterr().err
    assert not out.exists()
