"""Training, evaluation and audit with rewards of one's own, and received runs that name some."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.agents.completions import read_completions
from ollm_rl.agents.evaluation.audit import format_audit, run_audit
from ollm_rl.agents.evaluation.config import AuditConfig, EvalConfig
from ollm_rl.agents.evaluation.free_running import run_eval
from ollm_rl.agents.training.run import train_agent
from ollm_rl.agents.training.trainer import train
from ollm_rl.cli import main
from ollm_rl.errors import UsageError
from ollm_rl.options.model import OptionModel
from tests.training_runs import DIGITS, assert_equal_runs, config, history, naming

FILE = """
def ones(prompts, completions, **columns):
    return [completion.count("1") / 3 for completion in completions]

def fussy(prompts, completions, **columns):
    if any("2" in completion for completion in completions):
        raise ValueError("a two")
    return [1.0] * len(completions)

def broken(prompts, completions, **columns):
    return undefined
"""
WARNED = "ignore:reward fussy failed"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(DIGITS))
    origin: dict[str, Any] = dict.fromkeys(("commit", "machine", "command"), "x") | {"versions": {}}
    monkeypatch.setattr("ollm_rl.runs.origin", lambda: origin)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_a_policy_learns_from_a_reward_of_ones_own_in_place_of_correctness(
    tmp_path: Path, model_folder: Path, data: str, file: Path
) -> None:
    settings: dict[str, Any] = {"reward": [f"{file}:ones=2"], "iterations": 12, "episodes": 32, "learning_rate": 0.05}
    out = train(config(tmp_path / "run", model_folder, data, **settings))
    rows = history(out)
    assert rows[0]["reward_ones"] < 0.5 and rows[-1]["reward_ones"] > 0.9
    assert rows[-1]["reward"] == pytest.approx(2 * rows[-1]["reward_ones"])
    line = read_completions(out)[0]
    assert line["reward"] == pytest.approx(2 * line["completion"].count("1") / 3)
    assert set(line["terms"]) == {"correctness", "ones"} and line["columns"]["answer"] == line["answer"]


@pytest.mark.filterwarnings(WARNED)
def test_failures_are_counted_and_named_and_a_resumed_run_is_equal(
    tmp_path: Path, model_folder: Path, data: str, file: Path
) -> None:
    settings: dict[str, Any] = {"reward": [f"{file}:fussy", f"{file}:ones"], "failure_reward": -0.25}
    whole = train(config(tmp_path / "whole", model_folder, data, **settings))
    rows, lines = history(whole), read_completions(whole)
    failed = [line for line in lines if "2" in line["completion"]]
    assert failed and all(line["reward_faults"] == {"fussy": "ValueError: a two"} for line in failed)
    assert all(line["terms"]["fussy"] == (-0.25 if line in failed else 1.0) for line in lines)
    assert sum(row["reward_failures"] for row in rows) == len(failed)
    train(config(tmp_path / "half", model_folder, data, **settings | {"iterations": 2}))
    other = tmp_path / "moved"
    other.mkdir()
    settings["reward"] = [name.replace(str(file), str(shutil.copy(file, other))) for name in settings["reward"]]
    assert_equal_runs(train(config(tmp_path / "half", model_folder, data, **settings)), whole)


def test_a_function_that_fails_everywhere_ends_the_run_in_one_line(
    tmp_path: Path, model_folder: Path, data: str, file: Path
) -> None:
    with (
        pytest.raises(
            UsageError, match="reward broken failed on all 16 completions .NameError: .*; correct it"
        ) as raised,
        pytest.warns(RuntimeWarning),
    ):
        train(config(tmp_path / "run", model_folder, data, reward=[f"{file}:broken"]))
    assert "\n" not in str(raised.value)


def test_functions_of_python_are_named_in_the_settings(tmp_path: Path, model_folder: Path, data: str) -> None:
    def twos(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float(completion.count("2")) for completion in completions]

    settings = config(tmp_path / "run", model_folder, data, iterations=1, reward=["twos=0.5"])
    with pytest.raises(UsageError, match="reward='twos=0.5' names no function; give FILE.py:FUNCTION"):
        train(settings)
    (row,) = history(train(settings, functions=[twos]))
    assert row["reward"] == pytest.approx(0.5 * row["reward_twos"]) and row["reward_twos"] > 0


@pytest.mark.filterwarnings(WARNED)
def test_an_agent_of_sb3_gets_rewards_of_ones_own(tmp_path: Path, model_folder: Path, data: str, file: Path) -> None:
    run = config(tmp_path / "base", model_folder, data)
    settings = {name: getattr(run, name) for name in ("model", "data", "max_new_tokens", "num_slots", "device")}
    settings |= {"out": tmp_path / "run", "agent": "sb3-ppo", "iterations": 1, "episodes": 8, "n_steps": 6}
    out = train_agent(type(run)(**settings, reward=[f"{file}:ones", f"{file}:fussy"]))
    for line in read_completions(out):
        expected = line["completion"].count("1") / 3 + ("2" not in line["completion"])
        assert line["reward"] == pytest.approx(expected, abs=1e-6)
        assert ("2" in line["completion"]) == ("reward_faults" in line)


@pytest.mark.filterwarnings(WARNED)
def test_evaluation_and_audit_call_the_functions_that_they_are_given(
    tmp_path: Path, model_folder: Path, data: str, file: Path
) -> None:
    names = [f"{file}:ones", f"{file}:fussy"]
    shared: dict[str, Any] = {"model": [str(model_folder)], "data": [data], "max_new_tokens": 3, "device": "cpu"}
    (result,) = run_eval(EvalConfig(**shared, sample=True, out=tmp_path / "eval", reward=names))
    texts = [line["completion"] for line in result["completions"]]
    assert result["reward_ones"] == pytest.approx(sum(text.count("1") for text in texts) / 3 / 7)
    assert result["reward_failures"] == sum("2" in text for text in texts)
    assert "| reward ones | reward fussy | reward failures |" in (tmp_path / "eval" / "results.md").read_text()
    (path,) = (tmp_path / "eval").glob("*--*.json")
    file.write_text(FILE.replace("/ 3", "/ 6"))
    audited = run_audit(AuditConfig(path, reward=names))
    different = sum("1" in text for text in texts)
    failed = sum("2" in text for text in texts)
    assert audited["rewards"]["ones"] == {"mean": pytest.approx(result["reward_ones"] / 2), "failures": 0} | {
        "recorded": 7,
        "different": different,
    }
    assert audited["rewards"]["fussy"]["failures"] == audited["reward_failures"] == failed
    assert f"{different} of 7 recorded values are others now" in format_audit(audited)


def test_an_audit_calls_functions_that_said_nothing_about_some_completions(
    tmp_path: Path, model_folder: Path, data: str, file: Path
) -> None:
    file.write_text(
        "def ones(completions, solution, **columns):\n"
        "    return [1.0 if '1' in text else None for text in completions]\n"
    )
    out = train(config(tmp_path / "run", model_folder, data, iterations=1, reward=[f"{file}:ones"]))
    silent = ["1" not in line["completion"] for line in read_completions(out)]
    assert 0 < sum(silent) < len(silent)
    audited = run_audit(AuditConfig(out, reward=[f"{file}:ones"]))
    recorded = len(silent) - sum(silent)
    assert audited["rewards"]["ones"] == {"mean": 1.0, "failures": 0, "recorded": recorded, "different": 0}


def test_what_a_received_run_names_is_not_run(
    tmp_path: Path, model_folder: Path, data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file, mark = tmp_path / "mine.py", tmp_path / "ran"
    file.write_text(FILE)
    run = config(tmp_path / "run", model_folder, data, iterations=1, reward=["mine.py:ones"])
    train(run)
    file.write_text(f"open({str(mark)!r}, 'w')\n{FILE}")
    shared = ["--data", data, "--max_new_tokens", "3", "--device", "cpu"]
    assert main(["eval", "--model", "run", "--limit", "2", *shared]) == 0
    assert main(["audit", "run"]) == 0
    resume = ["--iterations", "2", "--episodes", "16", "--group_size", "4", "--num_slots", "8", "--minibatches", "2"]
    command = ["train", "--out", "run", "--model", str(model_folder), *resume, "--seed", "3", "--learning_rate", "0.01"]
    assert main([*command, *shared]) == 2
    assert "(reward is ['mine.py:ones'] there, [] here)" in capsys.readouterr().err
    assert not mark.exists()
    assert main([*command, *shared, "--reward", "mine.py:ones"]) == 2  # the user's own command runs it
    assert mark.exists() and "has changed since the run in run began" in capsys.readouterr().err
    file.write_text(FILE)
    assert main([*command, *shared, "--reward", "mine.py:ones"]) == 0
