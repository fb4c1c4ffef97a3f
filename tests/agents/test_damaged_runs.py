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
from ollm_rl.errors import DamagedError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.damage import flip, garbage, refusal, truncate
from tests.tiny_models import save_backbone
from tests.training_runs import ONES, assert_equal_runs, config, naming

SHORT = ("--max_new_tokens", "4")


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
        "report": [run, "--out", run.parent / "report.html"],
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
