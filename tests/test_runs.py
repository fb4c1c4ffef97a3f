"""Run folders: atomic writes, one run per folder, and settings that must agree to resume."""

import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ollm_rl import runs as runs_module
from ollm_rl.backbones.names import resolve
from ollm_rl.options.config import OptionConfig
from ollm_rl.runs import exclusive_run, open_run, origin, read_run, write_atomic


@dataclass(frozen=True, kw_only=True)
class Settings:
    out: Path
    cache: Path | None = None
    workers: int = 0
    ray_address: str | None = None
    max_concurrent: int | None = None
    steps: int = 3
    data: Path = Path("some/file")
    options: OptionConfig = field(default_factory=OptionConfig)


@pytest.mark.parametrize(("data", "expected"), [("año ∑", "año ∑".encode()), (b"\x00\xff", b"\x00\xff"), ("", b"")])
def test_a_file_is_written_with_its_folders(tmp_path: Path, data: str | bytes, expected: bytes) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    write_atomic(path, data)
    assert path.read_bytes() == expected
    write_atomic(path, "again")
    assert path.read_text() == "again"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_keeps_the_old_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, "old")
    unwritable: Any = 17
    with pytest.raises(TypeError):
        write_atomic(path, unwritable)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_stop_just_before_the_exchange_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, "old")

    def fail(*arguments: object) -> None:
        assert path.read_text() == "old"
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_folder_is_claimed_and_the_same_run_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    assert open_run(folder, "sft", Settings(out=folder)) is False
    assert open_run(folder, "sft", Settings(out=folder)) is True
    moved = folder.rename(tmp_path / "moved")
    assert open_run(moved, "sft", Settings(out=moved)) is True


def test_a_run_resumes_with_its_cache_in_another_folder(tmp_path: Path) -> None:
    assert not open_run(tmp_path / "run", "sft", Settings(out=tmp_path / "run", cache=tmp_path / "full disk"))
    assert open_run(tmp_path / "run", "sft", Settings(out=tmp_path / "run", cache=tmp_path / "larger disk"))


def test_a_run_resumes_with_fewer_workers_on_another_cluster(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert not open_run(out, "train", Settings(out=out, workers=8, ray_address="10.0.0.1:6379"))
    assert open_run(out, "train", Settings(out=out, workers=4))


def test_a_comparison_resumes_with_more_runs_at_a_time(tmp_path: Path) -> None:
    assert not open_run(tmp_path, "compare", Settings(out=tmp_path, max_concurrent=6))
    assert open_run(tmp_path, "compare", Settings(out=tmp_path, max_concurrent=9))


@pytest.mark.parametrize("left", [".run.json.a1b2c3d4.tmp", ".run.json.x_y_z012", "training.lock"])
def test_a_kill_in_the_first_write_does_not_block_the_folder(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text('{"kind": "tr')  # the second form is that of older versions
    with exclusive_run(tmp_path, "train", Settings(out=tmp_path)) as exists:
        assert not exists
        assert {path.name for path in tmp_path.iterdir()} == {"run.json", "training.lock"}
    with exclusive_run(tmp_path, "train", Settings(out=tmp_path)) as exists:
        assert exists


def test_a_lone_surrogate_does_not_cost_the_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "page.html", "a\ud800b")
    assert (tmp_path / "page.html").read_text() == "a?b"


def test_an_empty_folder_may_be_claimed(tmp_path: Path) -> None:
    assert open_run(tmp_path, "sft", Settings(out=tmp_path)) is False


def test_a_run_records_its_settings_and_where_it_comes_from(tmp_path: Path) -> None:
    open_run(tmp_path, "train", Settings(out=tmp_path, steps=7))
    held = json.loads((tmp_path / "run.json").read_text())
    assert held["kind"] == "train"
    assert held["config"]["steps"] == 7 and held["config"]["data"] == "some/file"
    assert held["config"]["options"]["num_options"] == 10
    assert "out" not in held["config"]
    assert {"python", "torch", "transformers"} <= held["versions"].keys()
    assert {"commit", "machine", "command"} <= held.keys()
    assert read_run(tmp_path, "train") == held["config"]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("sft", {"steps": 9}, r"already holds a different run \(steps is 3 there, 9 here\); give another out folder"),
        ("train", {}, r"already holds a different run \(kind is 'sft' there, 'train' here\)"),
        ("sft", {"data": Path("other")}, r"\(data is 'some/file' there, 'other' here\)"),
        ("sft", {"options": OptionConfig(num_options=4)}, r"\(options is .*'num_options': 10.* there, .*4.* here\)"),
    ],
)
def test_a_different_run_is_refused_by_its_setting_and_both_values(
    tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    open_run(tmp_path, "sft", Settings(out=tmp_path))
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(ValueError, match=message):
        open_run(tmp_path, kind, Settings(out=tmp_path, **changes))
    assert (tmp_path / "run.json").read_text() == before


def test_a_folder_of_other_files_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="already exists and holds no run of ours; give another out folder"):
        open_run(tmp_path, "sft", Settings(out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match=r"thesis.txt already exists and holds no run of ours"):
        open_run(tmp_path / "thesis.txt", "sft", Settings(out=tmp_path))


def test_reading_a_folder_without_a_run_of_the_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"holds no run \(no run.json\); give the out folder of an ollm-rl train"
    ):
        read_run(tmp_path / "nowhere", "train")
    open_run(tmp_path, "sft", Settings(out=tmp_path))
    with pytest.raises(FileNotFoundError, match="holds a run of ollm-rl sft, not of ollm-rl train"):
        read_run(tmp_path, "train")


def test_a_run_of_many_is_refused_with_the_name_of_one_in_it(tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    for path, kind in (("demo", "demo"), ("demo/latent", "train"), ("demo/all/options", "sft")):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        (tmp_path / path / "run.json").write_text(json.dumps({"kind": kind, "config": {}}))
    with pytest.raises(FileNotFoundError, match="not of ollm-rl train; give the out folder of one, such as .*latent$"):
        read_run(demo, "train")
    with pytest.raises(FileNotFoundError, match="with models in it; give one of them, such as .*options$"):
        resolve(demo)
    assert resolve(demo / "latent").kind == "run"


def test_the_command_of_a_run_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["explore", "--prompt", "Ana's 9 books; how many has she?", "--out", "a b.html"]
    for program in ("/usr/bin/ollm-rl", str(Path(runs_module.__file__).parent / "cli.py")):
        monkeypatch.setattr(sys, "argv", [program, *words])
        assert shlex.split(origin()["command"]) == ["ollm-rl", *words]
    monkeypatch.setattr(sys, "argv", ["my scripts/train.py", "x y"])
    assert shlex.split(origin()["command"]) == ["python", "my scripts/train.py", "x y"]
