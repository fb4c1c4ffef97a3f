"""Run folders: one run a folder, its settings and origin in ``run.json``, every file written atomically."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from ollm_rl.errors import MissingError, UsageError

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
# Where a run computes, not what: it may go on with others, a cluster with another address or fewer workers.
PLACES = ("cache", "workers", "gpus_per_worker", "ray_address", "worker_timeout")
CHECKPOINTS_FOLDER = "checkpoints"  # of a training run


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, meets the old content or the new, never a part."""
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
    """Claim a folder for a run, or find in it the same run to go on with.

    Args:
        folder: The run's folder; made if it is missing.
        kind: What runs ("sft", "train", ...).
        config: The dataclass of its settings. Its fields ``out`` and those in ``PLACES`` do not count.

    Returns:
        Whether the folder held this run already.

    Raises:
        UsageError: If the folder holds a different run or other files.
    """
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    settings.pop("out", None)
    path = folder / "run.json"
    if path.exists():
        held = json.loads(path.read_text())
        wanted = {"kind": kind, **settings}
        found = {"kind": held["kind"], **held["config"]}
        differing = [name for name in wanted if name not in PLACES and wanted[name] != found.get(name)]
        if differing:
            name = differing[0]
            raise UsageError(
                f"{folder} already holds a different run ({name} is {found.get(name)!r} there, {wanted[name]!r} here); "
                "give another out folder or delete this one"
            )
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} already exists and holds no run of ours; give another out folder")
    write_atomic(path, json.dumps({"kind": kind, "config": settings, **origin()}, indent=2))
    return False


def read_run(folder: Path, kind: str) -> dict[str, Any]:
    """The settings of the run in a folder.

    Raises:
        MissingError: If the folder holds no run of this kind.
    """
    path = folder / "run.json"
    if not path.exists():
        raise MissingError(f"{folder} holds no run (no run.json); give the out folder of an ollm-rl {kind}")
    held = json.loads(path.read_text())
    if held["kind"] != kind:
        raise MissingError(f"{folder} holds a run of ollm-rl {held['kind']}, not of ollm-rl {kind}")
    config: dict[str, Any] = held["config"]
    return config


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a training run's last iterations, in their order."""
    return sorted((folder / CHECKPOINTS_FOLDER).glob("[0-9]*.pt"))


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint from which a training run resumes."""
    return next(reversed(numbered_checkpoints(folder)), None)


def _commit() -> str:
    """The commit of the source tree this package runs from, with "+changes" where files differ from it."""
    where = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(where), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        # A package inside an unrelated repository (a virtual environment in one, say) has no tracked files there.
        git("ls-files", "--error-unmatch", "runs.py")
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _machine() -> str:
    """Processor, cores and accelerator in words."""
    import torch

    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{accelerator}"
