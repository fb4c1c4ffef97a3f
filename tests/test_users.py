"""Users with a reward and data of their own, or an agent of their own, by what the guides show and nothing else."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.cli import main
from tests.places import ROOT
from tests.test_readme import commands, fenced

DATA, REWARD, AGENT = ((ROOT / f"docs/guides/{name}.md").read_text() for name in ("data", "reward", "agent"))
LIBRARIES = ("torchrl", "tianshou")
CPU = "--device cpu"
SMALLER = {
    "sft": f"--max_steps 1 --batch_size 2 {CPU}",
    "train": f"--iterations 1 --episodes 8 --group_size 4 --minibatches 1 --max_new_tokens 4 {CPU}",
    "eval": f"--max_new_tokens 4 {CPU}",
    "audit": "",
}


def follow(command: str) -> None:
    """Run a command of a guide, in smaller numbers."""
    words = shlex.split(command)
    assert main([*words, *SMALLER[words[0]].split()]) == 0


def library_of(code: str) -> str | None:
    """The library that a block of Python is about."""
    return next((name for name in LIBRARIES if re.search(rf"^from {name}\b", code, re.MULTILINE)), None)


def test_a_reward_and_data_of_ones_own_lead_to_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (row,) = fenced(DATA, "json")
    other = json.dumps({"question": "What is 2 + 3?", "answer": "5", "solution": "2 + 3 = 5. The answer is 5."})
    Path("mine.jsonl").write_text(row + other)
    Path("test.jsonl").write_text(json.dumps({"question": "What is 4 + 4?", "answer": "8"}))
    Path("mine.py").write_text(fenced(REWARD, "python")[0])
    shown = commands(REWARD)
    assert [command.split()[0] for command in shown] == ["sft", "train", "eval", "audit"]
    for command in shown:
        capsys.readouterr()
        follow(command)
    assert "brevity" in capsys.readouterr().out  # what the audit printed
    results = json.loads(Path("runs/brief_eval/results.json").read_text())
    assert [result["model"] for result in results] == ["runs/brief", "runs/own_options"]
    for result, path in zip(results, sorted(Path("runs/brief_eval").glob("*--*.json")), strict=True):
        lengths = [len(one["completion"]) for one in json.loads(path.read_text())["completions"]]
        assert result["reward_brevity"] == pytest.approx(-sum(lengths) / len(lengths) / 100)
    assert "reward brevity" in Path("runs/brief_eval/results.md").read_text()
    (row_of_run,) = json.loads(Path("runs/brief/metrics.json").read_text())
    assert row_of_run["reward"] == pytest.approx(row_of_run["reward_brevity"]) and row_of_run["reward"] < 0


@pytest.fixture(scope="module")
def with_options(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of somebody who followed the commands of the guide to agents."""
    folder = tmp_path_factory.mktemp("agent")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (command,) = commands(AGENT)
        follow(f"{command} --limit 4")
    return folder


def test_an_agent_of_ones_own_is_trained_and_measured(with_options: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(with_options)
    names: dict[str, Any] = {}
    for code in fenced(AGENT, "python"):
        if library_of(code) is None:
            exec(code, names)
    assert len(names["finished"]) >= 8 and set(names["finished"]) <= {0.0, 1.0}
    assert names["agent"].actor[-1].weight.abs().max() > 0  # zero before it has learnt
    result = names["result"]
    right = [one["correct"] for one in result["completions"]]
    assert len(right) == 8 and result["accuracy"] == sum(right) / 8


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_environment_works_with_a_library(
    library: str, with_options: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library)
    monkeypatch.chdir(with_options)
    (code,) = [code for code in fenced(AGENT, "python") if library_of(code) == library]
    exec(code, {})
