"""Sweeps: every trial is a separate run, failures do not affect other trials, a killed sweep resumes."""

import json
import os
import pickle
import signal
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from filelock import FileLock
from ray import cloudpickle

import ollm_rl.experiments.ray_tune as ray_tune
import ollm_rl.experiments.sweep as sweep_module
from ollm_rl.agents.config import RewardConfig, RLConfig
from ollm_rl.agents.training.run import train_agent
from ollm_rl.agents.training.trainer import train
from ollm_rl.cli import main, parse
from ollm_rl.experiments.config import SweepConfig
from ollm_rl.experiments.ray_tune import ray_stopped_after, start_ray
from ollm_rl.experiments.sweep import run_sweep, setting_table
from ollm_rl.experiments.trials import plan
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.runs import open_run
from tests.damage import garbage
from tests.payload import Payload
from tests.places import ROOT
from tests.processes import run_process
from tests.tiny_models import save_backbone


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One Ray instance for all sweeps of this file."""
    with ray_stopped_after():
        start_ray()
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two settings with two seeds each, and a second of training per run; one process of Ray for all."""
    folder = tmp_path_factory.mktemp("sweep")
    torch.manual_seed(0)
    model = OptionModel.from_backbone(save_backbone(folder / "backbone"), OptionConfig(num_options=4, width=8))
    with torch.no_grad():
        model.adapter.decoder_out.weight.mul_(30)  # options that lead to different tokens
    model.save_pretrained(folder / "options")
    (folder / "problems.jsonl").write_text('{"question": "Give a?", "answer": "1"}\n{"question": "b?", "answer": "2"}')
    run: dict[str, Any] = {
        "model": str(folder / "options"),
        "data": f"jsonl:{folder / 'problems.jsonl'}",
        "iterations": 2,
        "episodes": 16,
        "group_size": 4,
        "max_new_tokens": 8,
        "num_slots": 8,
        "rewards": {"language": 1.0, "length": 0.5},
    }
    return {"train": run, "grid": {"algorithm": ["ppo", "reinforce"]}, "seeds": [0, 5], "max_concurrent": 1}


def sweep_until_killed(out: Path, settings: dict[str, Any], mark: str) -> None:
    """Runs in a process of its own. The trial with seed 5 kills it and itself after its first iteration."""
    os.environ["OLLM_RL_TEST_MARK"] = mark
    sweep = os.getpid()

    def train_until_killed(config: RLConfig, report: Any) -> Path:
        def on_iteration(row: dict[str, float]) -> None:
            if config.seed == 5:
                os.kill(sweep, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
            report(row)

        return train_agent(config, on_iteration)

    pytest.MonkeyPatch().setattr(ray_tune, "train_agent", train_until_killed)
    run_sweep(SweepConfig(out=out, **settings))


def marked_processes(mark: str) -> list[psutil.Process]:
    """Processes whose environment contains the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("OLLM_RL_TEST_MARK") == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def iterations(out: Path) -> dict[str, int]:
    """How many iterations each trial has made, by the number in its name."""
    return {path.parent.name[:3]: len(json.loads(path.read_text())) for path in out.glob("trials/*/metrics.json")}


@pytest.fixture(scope="module")
def resumed(ray: None, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that was killed in the middle of its second trial and resumed."""
    folder = tmp_path_factory.mktemp("resumed")
    out, log, mark = folder / "sweep", folder / "log", f"mark-{folder}"
    assert run_process(log, sweep_until_killed, out, settings, mark) == -signal.SIGKILL, log.read_text()
    assert iterations(out) == {"000": 2, "001": 1} and len(list((out / "trials").iterdir())) == 2
    assert not (out / "table.csv").exists()
    left = marked_processes(mark)
    assert run_sweep(SweepConfig(out=out, **settings)) == out / "report.html"
    assert not psutil.wait_procs(left, timeout=60)[1]
    return out


class FakeTraining:
    """Stands in for a training run: three iterations whose reward is the learning rate."""

    def __init__(self, attempts: Path, failures: dict[float, int]) -> None:
        self.attempts, self.failures = attempts, failures

    def __call__(self, config: RLConfig, on_iteration: Any) -> Path:
        open_run(config.out, "train", config)
        with self.attempts.open("a") as file:
            file.write(f"{config.learning_rate:g}\n")
        tried = self.attempts.read_text().split().count(f"{config.learning_rate:g}")
        history = []
        for iteration in range(config.iterations):
            history.append({"iteration": float(iteration), "reward": config.learning_rate, "reward_correctness": 0.5})
            history[-1] |= {"episodes": 8.0, "seconds": 1.0, "completion_tokens": 4.0}
            history[-1] |= {"language_switching_rate": 0.0, "degeneracy_rate": 0.0}
            (config.out / "metrics.json").write_text(json.dumps(history))
            on_iteration(history[-1])
            if tried <= self.failures.get(config.learning_rate, 0):
                raise OSError(f"the disk of {config.learning_rate:g}\nis full")
        return config.out


def fake_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: dict[float, int], **changes: Any) -> Path:
    """Run a sweep over learning rates with `FakeTraining`."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers do not know this file
    monkeypatch.setattr(ray_tune, "train_agent", FakeTraining(tmp_path / "attempts", failures))
    monkeypatch.setattr(sweep_module, "check_inputs", lambda *inputs: None)  # there is no model
    run_sweep(SweepConfig(out=tmp_path / "sweep", train={"model": "m", "iterations": 3}, **changes))
    return tmp_path / "sweep"


@pytest.mark.slow
def test_every_trial_of_a_sweep_killed_in_the_middle_equals_a_single_run_with_its_settings(
    resumed: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    table = pd.read_parquet(resumed / "table.parquet")
    trials = [("ppo", 0), ("ppo", 5), ("reinforce", 0), ("reinforce", 5)]
    assert list(zip(table["train.algorithm"], table["seed"], strict=True)) == trials
    assert set(table["status"]) == {"finished"}
    run: dict[str, Any] = {**settings["train"], "rewards": RewardConfig(language=1.0, length=0.5)}
    for place, (algorithm, seed) in enumerate(trials):
        out = train(RLConfig(out=tmp_path / f"{place}", seed=seed, **{**run, "algorithm": algorithm}))
        alone = json.loads((out / "metrics.json").read_text())[-1]
        row = table.iloc[place]
        assert {"reward", "reward_language", "entropy", "policy_loss", "completion_tokens"} <= alone.keys()
        for name, value in alone.items():
            if not name.startswith("seconds"):
                assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    written = pd.read_csv(resumed / "table.csv")
    assert written.pop("error").isna().all() and table.pop("error").isna().all()
    pd.testing.assert_frame_equal(written, table, check_dtype=False)


def test_a_sweep_that_has_ended_trains_nothing_again(resumed: Path, settings: dict[str, Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in resumed.glob("trials/*/best.pt")}
    assert len(before) == 4
    run_sweep(SweepConfig(out=resumed, **settings))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_table_has_mean_and_spread_over_seeds_and_the_report_every_setting(resumed: Path) -> None:
    table = pd.read_parquet(resumed / "table.parquet")
    for setting, rows in table.groupby("setting"):
        rewards = [
            json.loads((resumed / "trials" / name / "metrics.json").read_text())[-1]["reward"] for name in rows["trial"]
        ]
        assert list(rows["reward_mean"]) == pytest.approx([statistics.mean(rewards)] * 2)
        assert list(rows["reward_std"]) == pytest.approx([statistics.stdev(rewards)] * 2)
        assert list(rows["num_seeds"]) == [2, 2]
        assert str(setting) in (resumed / "report.html").read_text()
    assert (table["reward_std"] > 0).any()


def test_settings_are_ranked_by_the_mean_of_what_finished() -> None:
    base = {"setting": "a", "m_mean": 0.5, "m_std": 0.1, "num_seeds": 2}
    rows = [base, base, {**base, "setting": "b", "m_mean": 0.7}, {**base, "setting": "c", "m_mean": None}]
    table = pd.DataFrame(rows)
    assert list(setting_table(table, "m", "max")["setting"]) == ["b", "a", "c"]
    assert list(setting_table(table, "m", "min")["setting"]) == ["a", "b", "c"]


def test_a_failed_trial_is_tried_again_and_then_reported_without_stopping_the_others(
    ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = {0.25: 1, 0.5: 9}  # the first recovers
    changes: dict[str, Any] = {"grid": {"learning_rate": [0.25, 0.5, 0.75]}, "max_failures": 1}
    out = fake_sweep(tmp_path, monkeypatch, failures, **changes)
    table = pd.read_parquet(out / "table.parquet").set_index("train.learning_rate")
    assert table["status"].to_dict() == {0.25: "finished", 0.5: "failed", 0.75: "finished"}
    assert sorted((tmp_path / "attempts").read_text().split()) == ["0.25", "0.25", "0.5", "0.5", "0.75"]
    assert table["reward"].to_dict() == {0.25: 0.25, 0.5: pytest.approx(float("nan"), nan_ok=True), 0.75: 0.75}
    assert table.loc[0.5, "num_seeds"] == 0
    assert table.loc[0.5, "error"] == "OSError: the disk of 0.5 is full"
    assert "50.0 % [–, –]" in (out / "report.html").read_text()  # one seed has no interval
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.startswith("failed: 001-learning_rate=0.5")]) == 1

    # The same command resumes: failed trials are tried again, the others are not run.
    fake_sweep(tmp_path, monkeypatch, {}, **changes)
    again = pd.read_parquet(out / "table.parquet").set_index("train.learning_rate")
    assert set(again["status"]) == {"finished"}
    assert sorted((tmp_path / "attempts").read_text().split()) == ["0.25", "0.25", "0.5", "0.5", "0.5", "0.75"]


def test_pickles_planted_where_tune_kept_its_state_are_not_read(
    ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, mark = tmp_path / "sweep", tmp_path / "executed"
    changes: dict[str, Any] = {"grid": {"learning_rate": [0.25]}}
    open_run(out, "sweep", SweepConfig(out=out, train={"model": "m", "iterations": 3}, **changes))
    (out / "tune").mkdir()
    for name in ("tuner.pkl", "trainable.pkl", "experiment_state-2026-01-01_00-00-00.json"):
        (out / "tune" / name).write_bytes(pickle.dumps(Payload(mark)))
    fake_sweep(tmp_path, monkeypatch, {}, **changes)
    assert list(pd.read_parquet(out / "table.parquet")["status"]) == ["finished"]
    assert not mark.exists()
    garbage(out / "tune" / "ended.json")
    with pytest.raises(
        ValueError, match=r"ended.json cannot be read .*; delete it, then every trial is looked at again"
    ):
        fake_sweep(tmp_path, monkeypatch, {}, **changes)


def test_when_every_trial_fails_the_first_error_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sweep_module, "run_trials", lambda state, configs, *_, **__: dict.fromkeys(configs, "OSError: full")
    )
    monkeypatch.setattr(sweep_module, "check_inputs", lambda *inputs: None)  # there is no model
    config = SweepConfig(out=tmp_path / "sweep", train={"model": "m"}, grid={"learning_rate": [0.5, 0.25]})
    with pytest.raises(ValueError, match=r"all 2 trials failed; 000-learning_rate=0.5,seed=0: OSError: full"):
        run_sweep(config)


def test_asha_ends_the_worse_trials_early(ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Trials run one after the other, so those after the best are compared with it after the first iteration.
    rates = {"grid": {"learning_rate": [0.9, 0.1, 0.2]}}
    out = fake_sweep(tmp_path, monkeypatch, {}, scheduler="asha", max_concurrent=1, **rates)
    table = pd.read_parquet(out / "table.parquet")
    assert list(table["status"]) == ["finished", "stopped", "stopped"]
    assert list(table["iteration"]) == [2, 0, 0]
    assert list(table["num_seeds"]) == [1, 0, 0]


def test_the_shipped_preset_is_two_algorithms_three_rates_and_three_seeds(tmp_path: Path) -> None:
    preset = ROOT / "experiments" / "presets" / "tiny_arith_sweep.yaml"
    arguments = ["sweep", "--config", str(preset), "--out", str(tmp_path), "--train.model", "elsewhere"]
    configs = [trial.config for trial in plan(parse(arguments)[1]).values()]
    assert len({(one.algorithm, one.learning_rate, one.seed) for one in configs}) == len(configs) == 18
    assert {one.model for one in configs} == {"elsewhere"}
    assert {one.device for one in configs} == {"cpu"}


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        ("train: {model: m}\nbogus: 1", ["bogus"]),
        ("train: {model: m, bogus: 1}", ["setting 'bogus' is unknown", "ollm-rl train --help"]),
        ("train: {model: m}\ngrid: {bogus: [1]}", ["setting 'bogus' is unknown"]),
        ("train: {model: m}\nmetric: bogus", ["metric", "bogus"]),
        ("train: {model: m}\ngrid: {gamma: []}", ["no values for 'gamma'"]),
        ("train: {model: m, gamma: 1}\ngrid: {gamma: [1]}", ["'gamma' is given twice"]),
        ("train: {model: m, seed: 1}", ["'seed' cannot be a setting", "give seeds"]),
        ("grid: {gamma: [1]}", ["model is missing"]),
        ("train: {model: m}\ngrid: {episodes: [8, 9]}", ["episodes=9 is no multiple of group_size=8"]),
        ("train: {model: m}\ngrid: {episodes: [many]}", ["episodes", "many"]),
        ("train: {model: m}\nrandom: {gamma: {normal: [0, 1]}}", ["random setting 'gamma'", "loguniform"]),
        ("train: {model: m}\nrandom: {gamma: {uniform: [1, 0]}}", ["'gamma' is uniform: [1, 0]", "[low, high]"]),
        ("train: {model: m}\nseeds: [1, 1]", ["seeds=[1, 1]"]),
        ("train: {model: m}\ngpus: 64", ["gpus=64 for every trial, but this machine has"]),
        ("train: {model: m}\ncpus: 4096", ["cpus=4096 for every trial, but this machine has"]),
    ],
)
def test_a_mistake_gets_one_line_before_anything_runs(
    lines: str, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text(lines)
    assert main(["sweep", "--config", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "x")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ollm-rl: ")]
    assert len(errors) == 1 and all(part in errors[0] for part in parts), errors
    assert not (tmp_path / "x").exists()


def test_another_sweep_in_the_folder_or_one_that_runs_is_refused(resumed: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"already holds a different run \(seeds is \[0, 5\] there, \[1\] here\)"):
        run_sweep(SweepConfig(out=resumed, **{**settings, "seeds": [1]}))
    with (
        FileLock(resumed / "sweep.lock"),
        pytest.raises(ValueError, match="a sweep is running in .*; wait for it or give another out folder"),
    ):
        run_sweep(SweepConfig(out=resumed, **settings))
