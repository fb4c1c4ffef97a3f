"""Damaged files of a training run: the checkpoint before is used, or one line names file and remedy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ollm_rl.agents.policies.loading import load_policy, trained_weights
from ollm_rl.agents.training.trainer import train
from ollm_rl.cli import main
from ollm_rl.errors import DamagedError, UsageError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.damage import flip, garbage, refusal, truncate
from tests.tiny_models import save_backbone
from tests.training_runs import ONES, assert_equal_runs, config, naming

SHORT = ("--max_new_tokens", "4", "--device", "cpu")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, problems, a run of four iterations with a replay, and its evaluation."""
    folder = tmp_path_factory.mktemp("origin")
    torch.manual_seed(0)
    backbone = save_backbone(folder / "backbone")
    OptionModel.from_backbone(backbone, OptionConfig(num_options=4, width=8)).save_pretrained(folder / "options")
    rows = [
        {"question": f"Give {word}?", "answer": answer}
        for word, answer in zip("abc", ("111", "112", "111"), strict=True)
    ]
    (folder / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OptionModel, "option_tokens", naming(ONES))
        data = f"jsonl:{folder / 'problems.jsonl'}"
        train(config(folder / "run", folder / "options", data, ratio="topr", replay=2))
        assert (
            main(["eval", "--model", str(folder / "run"), "--data", data, "--out", str(folder / "results"), *SHORT])
            == 0
        )
    return folder


@pytest.fixture
def run(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, with the files that it names where they were."""
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    for name in ("run", "results"):
        shutil.copytree(origin / name, tmp_path / name)
    return tmp_path / "run"


def resume(origin: Path, run: Path) -> Path:
    data = f"jsonl:{origin / 'problems.jsonl'}"
    return train(config(run, origin / "options", data, ratio="topr", replay=2))


def without_entries(path: Path) -> None:
    path.write_text('{"kind": "train", "config": {}}' if path.name == "run.json" else "{}")


def weights(name: Path) -> list[torch.Tensor]:
    return list(trained_weights(load_policy(str(name))[0]).values())


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one_and_ends_the_same(
    origin: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(run / "checkpoints" / "000004.pt")
    resume(origin, run)
    line = next(line for line in capsys.readouterr().err.splitlines() if "is damaged" in line)
    assert line.startswith(f"{run}/checkpoints/000004.pt is damaged") and "the checkpoint before it is used" in line
    assert (run / "checkpoints" / "damaged" / "000004.pt").exists()
    assert_equal_runs(run, origin / "run")


def test_every_reader_uses_the_checkpoint_before_a_damaged_one(
    origin: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(run / "checkpoints" / "000003.pt")
    data = f"jsonl:{origin / 'problems.jsonl'}"
    commands = {
        "eval": ["--model", run, "--data", data, *SHORT],
        "search": ["--model", run, "--data", data, *SHORT, "--budget_tokens", "8"],
        "explore": ["--model", run, "--prompt", "a?", "--out", run.parent / "explorer.html", *SHORT],
        "report": [run, "--out", run.parent / "report.html", "--device", "cpu"],
    }
    newest = (run / "checkpoints" / "000004.pt").read_bytes()
    for command, arguments in commands.items():
        (run / "checkpoints" / "000004.pt").write_bytes(newest)
        flip(run / "checkpoints" / "000004.pt")
        assert main([command, *map(str, arguments)]) == 0
        assert capsys.readouterr().err.count("000004.pt is damaged") == 1
    assert all(map(torch.equal, weights(run), before))


def test_if_no_checkpoint_is_intact_one_line_says_so_now_and_later(
    origin: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (run / "checkpoints").glob("*.pt"):
        flip(path)
    for _ in range(2):
        assert "holds only damaged checkpoints" in refusal(capsys, "eval", "--model", run, "--limit", "2")
        with pytest.raises(DamagedError, match="holds only damaged checkpoints .*; train again in another out folder"):
            resume(origin, run)
    assert weights(run / "best.pt")  # can still be named


def test_a_damaged_checkpoint_that_was_named_is_refused_and_left_there(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("best.pt", "checkpoints/000003.pt"):
        flip(run / name)
        message = refusal(capsys, "eval", "--model", run / name, "--limit", "2")
        assert message == f"{run / name} is damaged: its checksum differs; give another checkpoint, or train again"
        assert (run / name).exists()


def test_with_a_damaged_replay_the_run_resumes_from_the_checkpoint_that_does_not_need_it(
    origin: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(run / "replay" / "000003.pt")
    resume(origin, run)
    assert "000003.pt is damaged: its checksum differs" in capsys.readouterr().err
    assert_equal_runs(run, origin / "run")
    for path in (run / "replay").glob("*.pt"):
        garbage(path)
    with pytest.raises(DamagedError, match="replay/000002.pt is damaged"):
        resume(origin, run)


@pytest.mark.parametrize("damage", [truncate, garbage, without_entries])
def test_other_broken_files_get_one_line_with_file_and_remedy(
    run: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    out = ["--out", run.parent / "report.html"]
    result = next((run.parent / "results").glob("*--*.json"))
    cases = {
        run / "run.json": [["eval", "--model", run], ["report", run, *out], ["search", "--model", run]],
        run / "metrics.json": [["report", run, *out]],
        run / "completions" / "000003.jsonl": [["audit", run], ["report", run, *out]],
        result: [["report", run, "--results", run.parent / "results", *out], ["audit", result]],
    }
    for path, commands in cases.items():
        kept = path.read_bytes()
        damage(path)
        for command in commands:
            message = refusal(capsys, *command)
            assert str(path) in message and ("copy it again" in message or "; give" in message), message
        path.write_bytes(kept)


def test_a_flipped_result_is_noticed_by_all_that_read_it(
    origin: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = next((run.parent / "results").glob("*--*.json"))
    result.write_text(result.read_text().replace('"num_problems": 3', '"num_problems": 4'))
    results = run.parent / "results"
    arguments = ["--data", f"jsonl:{origin / 'problems.jsonl'}", "--out", results, *SHORT]
    for command in (["report", run, "--results", results], ["audit", result]):
        assert f"{result} is damaged: its checksum differs" in refusal(capsys, *command)
    message = refusal(capsys, "eval", "--model", origin / "run", *arguments)
    assert message == f"{result} is damaged: its checksum differs; delete it to evaluate again"


def test_a_checkpoint_of_another_run_is_not_resumed_from(origin: Path, run: Path) -> None:
    data = f"jsonl:{origin / 'problems.jsonl'}"
    other = train(config(run.parent / "other", origin / "options", data, ratio="topr", replay=2, seed=4))
    shutil.copy(other / "checkpoints" / "000004.pt", run / "checkpoints" / "000004.pt")
    before = (run / "metrics.json").read_bytes()
    with pytest.raises(UsageError, match=r"000004.pt and .*metrics.json differ in row 1, .*; delete the one that is"):
        resume(origin, run)
    assert (run / "metrics.json").read_bytes() == before
    (run / "checkpoints" / "000004.pt").unlink()
    resume(origin, run)
    assert_equal_runs(run, origin / "run")


def test_iterations_that_took_other_seconds_the_first_time_are_the_same_run(origin: Path, run: Path) -> None:
    rows = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps([row | {"seconds": 99.0} for row in rows]))
    resume(origin, run)
    assert_equal_runs(run, origin / "run")


def test_broken_metrics_are_written_again_from_the_checkpoint_once_they_are_deleted(origin: Path, run: Path) -> None:
    truncate(run / "metrics.json")
    with pytest.raises(UsageError, match="metrics.json cannot be read .*; delete it, and the run writes it again"):
        resume(origin, run)
    (run / "metrics.json").unlink()
    resume(origin, run)
    assert_equal_runs(run, origin / "run")


@pytest.mark.parametrize("value", ["Infinity", "-1e999", "1" + "0" * 400, "true"])
def test_a_metric_that_is_no_number_is_refused(run: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    rows = json.loads((run / "metrics.json").read_text())
    rows[1]["reward"] = "here"
    (run / "metrics.json").write_text(json.dumps(rows).replace('"here"', value))
    message = refusal(capsys, "report", run, "--out", run.parent / "report.html")
    assert "'reward' of row 2 is '" in message and message.endswith("copy it again")


@pytest.mark.parametrize("name", ["completions", "checkpoints", "metrics.json"])
def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file_get_one_line(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    small = "--iterations 1 --episodes 8 --group_size 4 --max_new_tokens 3 --num_slots 4 --device cpu"
    data = f"jsonl:{origin / 'problems.jsonl'}"
    command = ["train", "--out", str(tmp_path / "run"), "--model", str(origin / "options"), "--data", data]
    assert main([*command, *small.split()]) == 0
    path = tmp_path / "run" / name
    if path.is_dir():
        shutil.rmtree(path)
        path.touch()
    else:
        path.unlink()
        path.mkdir()
    capsys.readouterr()
    assert main([*command, *small.split(), "--iterations", "2"]) in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ollm-rl: ")]
    assert str(path) in line and ("move away" in line or "delete it" in line)
