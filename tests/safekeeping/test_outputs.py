"""Outputs: one process at a time, refused before the work if they cannot be written, named if the disk is full."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from filelock import FileLock
from torch.utils.tensorboard import SummaryWriter

from ollm_rl.agents.training.trainer import train
from ollm_rl.cli import main
from ollm_rl.errors import RunError, UsageError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from ollm_rl.runs import exclusive_run, write_atomic
from ollm_rl.safekeeping.outputs import output_file, output_folder
from tests.places import ROOT
from tests.training_runs import ONES, config, naming

HOLDER = """
import sys, time
from pathlib import Path
from ollm_rl.safekeeping.outputs import output_file, output_folder
with output_file(Path(sys.argv[1])), output_folder(Path(sys.argv[2]), "a sweep"):
    print("held", flush=True)
    time.sleep(60)
"""


def full(*arguments: object, **settings: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_lock_keeps_a_second_process_out_and_is_released_by_a_kill(tmp_path: Path) -> None:
    file, folder = tmp_path / "result.json", tmp_path / "runs"
    command = [sys.executable, "-c", HOLDER, str(file), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another process is about to write .*result.json; wait for it or give an"):
            output_file(file).__enter__()
        with pytest.raises(UsageError, match="a sweep is running in .*runs; wait for it or give another out folder"):
            output_folder(folder, "a sweep").__enter__()
        holder.kill()
    with output_file(file), output_folder(folder, "a sweep"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"], "lock files go"


@pytest.mark.parametrize("agent", ["ollm-rl", "sb3-ppo"])
def test_a_second_training_or_evaluation_in_a_folder_is_refused_before_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str, agent: str
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--out", str(out), "--model", str(model_folder), "--data", data, "--agent", agent]
    out.mkdir()
    with FileLock(out / "training.lock"):
        assert main([*arguments, "--device", "cpu", "--max_new_tokens", "4"]) == 2
    assert [path.name for path in out.iterdir()] == ["training.lock"]
    with FileLock(out / "evaluation.lock"):
        assert (
            main(["eval", "--model", str(model_folder), "--data", data, "--max_new_tokens", "4", "--out", str(out)])
            == 2
        )


def unused(*arguments: object, **settings: object) -> None:
    raise AssertionError("the work began")


@pytest.mark.parametrize(
    ("arguments", "module", "work", "name"),
    [
        ("search --model MODEL --data DATA", "agents.search.run", "load_policy", "found.json"),
        ("explore --model MODEL --prompt 1+1?", "agents.evaluation.reporting", "load_policy", "page.html"),
        ("report RUN", "agents.evaluation.reporting", "group_runs", "page.html"),
        ("audit RUN", "agents.evaluation.audit", "read_completions", "audit.json"),
        ("teacher-forced --model MODEL --data DATA", "pretrain.teacher_forced.run", "load_problems", "forced.json"),
        ("eval --model MODEL --data DATA", "agents.evaluation.free_running", "load_policy", "results"),
        ("train --model MODEL --data DATA --agent sb3-ppo --max_new_tokens 4", "agents.training.sb3", "_learn", "run"),
    ],
)
@pytest.mark.parametrize("way", ["a file in the way", "a folder of this name"])
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_folder: Path,
    data: str,
    arguments: str,
    module: str,
    work: str,
    name: str,
    way: str,
) -> None:
    monkeypatch.setattr(import_module(f"ollm_rl.{module}"), work, unused)
    if way == "a file in the way":
        (tmp_path / "file").write_text("")
        out = tmp_path / "file" / name
    elif "." in name:
        out = tmp_path / name
        out.mkdir()
    else:
        pytest.skip("a folder is what it writes")
    words = {"MODEL": str(model_folder), "DATA": data, "RUN": str(tmp_path)}
    assert main([*(words.get(word, word) for word in arguments.split()), "--out", str(out)]) == 2
    (line,) = re.findall("ollm-rl: .*", capsys.readouterr().err)
    assert str(out) in line
    assert re.search("cannot be written .a file is in the way.; give|is a folder; give a file|must be a file", line), (
        line
    )


def test_a_full_disk_is_named_and_the_old_content_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="file.json cannot be written: no space left on its disk; free some and start"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


class NothingFree:
    free = 0


def torch_save(*arguments: object, **settings: object) -> None:
    raise RuntimeError(
        "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"
    )  # its words, without a reason


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("torch.save", full),
        ("torch.save", torch_save),
        ("os.fsync", full),
        ("torch.utils.tensorboard.SummaryWriter.add_scalar", full),
    ],
)
def test_supervised_training_on_a_full_disk_ends_with_one_line_that_names_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, target: str, fault: Callable[..., None]
) -> None:
    rows = [{"question": f"{a}+1?", "solution": f"#### {a + 1}", "answer": a + 1} for a in range(4)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = SFTConfig(
        out=tmp_path / "sft",
        backbone=str(model_folder.parent / "backbone"),
        data=f"jsonl:{tmp_path / 'data.jsonl'}",
        options=OptionConfig(num_options=4, width=8),
        max_steps=2,
        batch_size=2,
        save_steps=1,
        logging_steps=1,
        device="cpu",
    )
    with monkeypatch.context() as patch:
        patch.setattr(target, fault)
        patch.setattr("shutil.disk_usage", lambda path: NothingFree)
        with pytest.raises(RunError, match=f"{tmp_path}/sft.* cannot be written: no space left on its disk"):
            run_sft(settings)
    run_sft(settings)  # once there is space
    OptionModel.from_pretrained(settings.out)


def test_training_on_a_full_disk_ends_with_one_line_that_names_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    settings = config(tmp_path / "run", model_folder, data, iterations=1)
    for owner, name in ((os, "fsync"), (SummaryWriter, "add_scalar")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(RunError, match=f"{tmp_path}/run.* cannot be written: no space left on its disk"):
                train(settings)
    train(settings)


def test_other_errors_are_not_put_down_to_the_disk(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), output_folder(tmp_path / "run", "a sweep"):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="a fault of torch"), output_folder(tmp_path / "run", "a sweep"):
        raise RuntimeError("a fault of torch")


def test_what_killed_writes_left_is_removed_but_not_from_other_runs(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    for path in (out / ".metrics.json.a1b2c3d4.tmp", out / "checkpoints" / ".000001.pt.a1b2c3d4.tmp"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    others = [out / "other" / "run.json", out / "other" / ".metrics.json.a1b2c3d4.tmp", out / ".notes", out / "a.tmp"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    with output_folder(out, "a sweep"):
        left = {path for path in out.rglob("*") if path.is_file()}
    assert left == {*others, out / "sweep.lock"}


def test_a_folder_of_other_files_gets_no_lock(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds no run of ours"):
        exclusive_run(tmp_path, "train", config(tmp_path, tmp_path, "arith")).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_limit_of_file_sizes_is_named(
    tmp_path: Path, model_folder: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "--model", str(model_folder), "--data", data, "--max_new_tokens", "3", "--device", "cpu"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        assert main([*command, "--out", str(tmp_path / "out")]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ollm-rl: ")]
    assert line.endswith("raise the limit of file sizes (ulimit -f)")
