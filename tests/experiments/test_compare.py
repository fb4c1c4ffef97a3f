"""A comparison end to end: trials, fresh seeds, evaluations, tables and report; a killed one resumes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ollm_rl.cli import main
from ollm_rl.experiments.raw import tables_of
from ollm_rl.experiments.ray_tune import ray_running
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.places import ROOT
from tests.tiny_models import save_backbone


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


@pytest.fixture(scope="module")
def undisturbed(preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A comparison that was not disturbed; its Ray instance stays for the other tests."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with ray_running():
        assert compare(preset, out) == 0
        yield out


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
    tables = json.loads((undisturbed / "comparison.json").read_text())
    titles = ["Chosen settings", "Learning", "Until reward 0.5", "After training"]
    assert [table["title"] for table in tables["tables"]] == titles
    (greedy, sampled) = next(row[1:3] for row in tables["tables"][-1]["rows"] if row[0] == "one option")
    assert greedy == sampled and greedy[0] == greedy[1] == greedy[2], "one option leaves nothing to chance or to learn"
    assert tables["seeds"] == [0, 1] and {"command", "commit", "machine"} <= tables.keys()
    assert "### Until reward 0.5" in (undisturbed / "comparison.md").read_text()
    again = "\n\n".join(table.markdown() for table in tables_of(undisturbed / "comparison.parquet"))
    assert again + "\n" == (undisturbed / "comparison.md").read_text(), "the raw file gives the same tables"
    recorded = json.loads((undisturbed / "runs" / "anchored-seed0" / "run.json").read_text())["command"]
    assert recorded == tables["command"], "not that of a process of Ray"
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


def test_a_killed_comparison_resumes_to_the_same_runs(preset: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ollm_rl.cli", "compare", "--config", str(preset), "--out", str(out)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            while not list((out / "runs").glob("*/metrics.json")):
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert compare(preset, out) == 0
    assert rewards(out) == rewards(undisturbed)
    chosen = [json.loads((folder / "chosen.json").read_text()) for folder in (out, undisturbed)]
    assert chosen[0] == chosen[1]


def test_a_setting_that_a_run_would_refuse_is_refused_before_anything_runs(
    preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["compare", "--config", str(preset), "--out", str(out), "--train.group_size", "3"]) == 2
    assert "episodes=8 is no multiple of group_size=3; change one" in capsys.readouterr().err
    assert not out.exists()
