"""Run folders: one run per folder, its settings and origin in ``run.json``, every file written atomically."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ollm_rl.errors import MissingError, UsageError
from ollm_rl.files.intact import intact
from ollm_rl.files.records import read_object
from ollm_rl.files.tensors import check_tensors

PACKAGES = (
    "ollm-rl",
    "torch",
    "transformers",
    "peft",
    "gymnasium",
    "stable-baselines3",
    "ray",
    "math-verify",
    "datasets",
    "numpy",
)
# Where a run computes, not what: a resumed run may change these, such as to fewer workers or another cluster.
PLACEMENT_FIELDS = ("cache", "workers", "gpus_per_worker", "ray_address", "worker_timeout")
CHECKPOINTS_FOLDER = "checkpoints"  # within the folder of a training run


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file atomically: a reader, even after a kill, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def origin() -> dict[str, Any]:
    """Where a result comes from: commit of the source tree, package versions, machine and command."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {"commit": _commit(), "versions": versions, "machine": _machine(), "command": command}


def open_run(folder: Path, kind: str, config: Any) -> bool:
    """Claim a folder for a run, or find in it the same run to resume.

    Args:
        folder: The run's folder; created if it is missing.
        kind: Command of the run ("sft", "train", ...).
        config: The dataclass of its settings. ``out`` and the fields in ``PLACEMENT_FIELDS`` are not compared.

    Returns:
        Whether the folder already held this run.

    Raises:
        UsageError: If the folder holds a different run or other files.
    """
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    settings.pop("out", None)
    path = folder / "run.json"
    if path.exists():
        run = read_record(path)
        requested = {"kind": kind, **settings}
        existing = {"kind": run["kind"], **run["config"]}
        differing = [
            name for name in requested if name not in PLACEMENT_FIELDS and requested[name] != existing.get(name)
        ]
        if differing:
            name = differing[0]
            raise UsageError(
                f"{folder} already holds a different run ({name} is {existing.get(name)!r} there, {requested[name]!r} "
                "here); give another out folder or delete this one"
            )
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} already exists and holds no run of ours; give another out folder")
    write_atomic(path, json.dumps({"kind": kind, "config": settings, **origin()}, indent=2))
    return False


def read_record(path: Path) -> dict[str, Any]:
    """Contents of a ``run.json``: ``kind``, ``config`` and origin.

    Raises:
        DamagedError: If it is broken.
    """
    return read_object(path, {"kind": str, "config": {}}, remedy="copy it again, or give another folder")


def read_run(folder: Path, kind: str) -> dict[str, Any]:
    """The settings of the run in a folder.

    Raises:
        MissingError: If the folder holds no run of this kind.
    """
    path = folder / "run.json"
    if not path.exists():
        raise MissingError(f"{folder} holds no run (no run.json); give the out folder of an ollm-rl {kind}")
    run = read_record(path)
    if run["kind"] != kind:
        raise MissingError(f"{folder} holds a run of ollm-rl {run['kind']}, not of ollm-rl {kind}")
    config: dict[str, Any] = run["config"]
    return config


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a training run's last iterations, oldest first."""
    return sorted((folder / CHECKPOINTS_FOLDER).glob("[0-9]*.pt"))


def intact_checkpoints(folder: Path) -> Iterator[Path]:
    """The intact checkpoints of a training run, newest first; damaged ones are set aside.

    Raises:
        DamagedError: At the end, if there are only damaged ones.
    """
    return intact(folder / CHECKPOINTS_FOLDER, numbered_checkpoints(folder)[::-1], check_tensors)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint of a training run; None if none was saved yet.

    Raises:
        DamagedError: If all are damaged.
    """
    return next(intact_checkpoints(folder), None)


def _commit() -> str:
    """The commit of the source tree this package runs from, with "+changes" if files differ from it."""
    package = str(Path(__file__).resolve().parent)

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", package, *arguments], capture_output=True, text=True, check=True).stdout

    try:
        # A package installed inside an unrelated repository (in a virtual environment, say) has no tracked files there.
        git("ls-files", "--error-unmatch", "runs.py")
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _machine() -> str:
    """Operating system, processor, cores and accelerator as text."""
    import torch

    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{accelerator}"
