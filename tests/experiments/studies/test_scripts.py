"""Every command in the scripts of studies is one that `ollm-rl` accepts, and every module in them exists."""

import importlib
import importlib.util
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from ollm_rl.cli import parse
from ollm_rl.errors import UsageError
from ollm_rl.experiments.script import start
from tests.places import ROOT

STUDIES, BENCH = ROOT / "experiments/studies", ROOT / "experiments/bench"
SCRIPTS = sorted(path.name for path in STUDIES.glob("*.sh") if path.name != "step.sh")
# One write per call, since scripts make calls side by side.
RECORD = '#!/usr/bin/env bash\nprintf "%s\\n" "$(printf "%q " "$@")" >>"$RECORDED"\n'


def recorded_by(script: str, folder: Path) -> list[list[str]]:
    """The words of every call of Python in a script, which does nothing."""
    for name in ("data", "out/data"):
        (folder / name).mkdir(parents=True)
    files = ("gsm8k_train", "gsm8k_dev", "word_problems_train", "word_problems_dev", "mgsm_exemplars", "mgsm_dev")
    for name in (*(f"data/{name}" for name in files), "out/data/rl", "out/data/sft"):
        (folder / f"{name}.jsonl").write_text('{"lang": "en"}\n' * 301)
    (folder / "bin").mkdir()
    (folder / "bin/python3").write_text(RECORD)
    (folder / "bin/python3").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "RECORDED": str(folder / "recorded"),
        "CUDA_VISIBLE_DEVICES": "0",
    }
    only_out = dict.fromkeys(("smollm2_styles.sh", "tiny_arith_overfit.sh", "tiny_arith_selection.sh"), ["out"])
    three = {"paper.sh": ["model", "data", "out"], "smollm2_limits.sh": ["out", "arith", "arith"]}
    arguments = (three | only_out).get(script, ["data", "out"])
    command = [str(STUDIES / script), *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return [shlex.split(line) for line in (folder / "recorded").read_text().splitlines()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_commands_of_a_script_are_accepted(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded_by(script, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert all(call[0] == "-m" for call in calls)
    for _, module, *words in calls:
        if module == "ollm_rl.cli":
            assert parse(words)[0] == words[0]
        else:
            assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("script", [*SCRIPTS, "step.sh"])
def test_a_script_without_its_folders_says_which_to_give(script: str) -> None:
    ended = subprocess.run([str(STUDIES / script)], capture_output=True, text=True)
    assert ended.returncode and "give " in ended.stderr and ended.stderr.count("\n") == 1


def test_a_step_ends_in_time_and_what_is_small_travels(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text(
        'set -e; mkdir -p out/runs; echo 1 >>out/runs/metrics.json; head -c 4M /dev/zero >out/best.pt; "$@"'
    )
    step = ["bash", str(STUDIES / "step.sh"), "1", "state", "out", "bash", str(script)]
    first = subprocess.run([*step, "sleep", "30"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (first.returncode, first.stdout) == (124, "exit status 124; the same command continues\n")
    (tmp_path / "out").rename(tmp_path / "gone")  # another machine
    second = subprocess.run([*step, "true"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (second.returncode, second.stdout) == (0, "the study has ended\n")
    assert (tmp_path / "out/runs/metrics.json").read_text() == "1\n1\n"
    pieces = b"".join(path.read_bytes() for path in sorted((tmp_path / "state").iterdir()))
    assert len(pieces) < 1000


@pytest.mark.parametrize(
    "name", ["figure", "merge", "overfit_table", "retrain", "table", "paper_table", "selection_table"]
)
def test_a_study_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = importlib.import_module(f"ollm_rl.experiments.studies.{name}")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        study.main()
    assert f"python -m ollm_rl.experiments.studies.{name} " in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.py")) + sorted(BENCH.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_is_started_so_that_mistakes_are_one_line(path: Path) -> None:
    _, found, ending = path.read_text().partition('if __name__ == "__main__":')
    assert not found or path.stem == "fuzz_answers" or ending == "\n    start(main)\n"


def test_a_mistake_ends_a_script_with_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> None:
        raise UsageError("run='x' is\n no run; give one")

    with pytest.raises(SystemExit, match="2"):
        start(wrong)
    assert capsys.readouterr().err == "run='x' is no run; give one\n"


def test_a_number_of_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    study = importlib.import_module("ollm_rl.experiments.studies.drift_tables")
    monkeypatch.setattr("sys.argv", ["drift_tables", "drift.parquet", "--window", "0"])
    with pytest.raises(SystemExit, match="2"):
        study.main()
    assert capsys.readouterr().err.endswith("error: argument --window: 0 is less than 1\n")
