"""Run folders: one run per folder, its settings and origin in ``run.json``, every file written atomically."""

import dataclasses
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from ollm_rl.errors import MissingError, UsageError
from ollm_rl.files.intact import intact
from ollm_rl.files.records import Entries, read_object, require
from ollm_rl.files.tensors import check_tensors
from ollm_rl.safekeeping.outputs import TEMPORARY_SUFFIX, full_disk_named, is_temporary, lock_name, output_folder
from ollm_rl.safekeeping.places import Place, fingerprint_of, is_there, places_of, same_place

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
# Where a run computes and shows its metrics, not what: a resumed run may change these, such as to another cluster.
PLACEMENT_FIELDS = (
    *("cache", "workers", "gpus_per_worker", "ray_address", "worker_timeout", "report_to"),
    *("cpus", "gpus", "max_concurrent", "max_failures"),
)
# How long a run is and what is watched and kept of it, not what it learns: these may change too.
LENGTH_FIELDS = {
    "train": (
        *("iterations", "keep_checkpoints", "stop_at"),
        *("eval_every", "eval_data", "eval_split", "eval_columns", "eval_limit"),
    ),
}
ACTIVITIES = {
    "demo": "a demo",
    "sft": "supervised training",
    "train": "training",
    "sweep": "a sweep",
    "compare": "a comparison",
    "tiny-arith": "backbone training",
}
PLACE: Entries = {field.name: str for field in dataclasses.fields(Place)}
CHECKPOINTS_FOLDER, METRICS_FILE = "checkpoints", "metrics.json"  # within the folder of a training run


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file atomically: a reader, even after a kill, sees the old content or the new, never a part.

    Raises:
        RunError: If the disk is full; the old content is kept.
    """
    with full_disk_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX)
        try:
            with os.fdopen(handle, "wb") as file:
                # A lone surrogate, as in a broken text, has no UTF-8; it must not cost the whole file.
                file.write(data.encode(errors="replace") if isinstance(data, str) else data)
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
    return {"commit": _commit(), "versions": versions, "machine": _machine(), "command": _command()}


def _command() -> str:
    """The command of this process, which a shell can read again."""
    program = Path(sys.argv[0])
    ours = program.stem == "ollm-rl" or program.parent == Path(__file__).parent  # also python -m ollm_rl.cli
    return shlex.join([*(["ollm-rl"] if ours else ["python", str(program)]), *sys.argv[1:]])


@contextmanager
def exclusive_run(folder: Path, kind: str, config: Any) -> Iterator[bool]:
    """Open a run as `open_run` does, and keep other processes out of its folder while the block runs.

    Raises:
        UsageError: As `open_run`; or if the folder cannot be written or another process is at work in it.
        RunError: If the disk is full.
    """
    _refuse_foreign(folder)
    with output_folder(folder, ACTIVITIES[kind]):
        yield open_run(folder, kind, config)


def open_run(folder: Path, kind: str, config: Any) -> bool:
    """Claim a folder for a run, or find in it the same run to resume.

    Args:
        folder: The run's folder; created if it is missing.
        kind: Command of the run ("sft", "train", ...).
        config: The dataclass of its settings. ``out``, the fields in ``PLACEMENT_FIELDS`` and those of the kind in
            ``LENGTH_FIELDS`` are not compared, and of a model or a file of problems only what it holds, not its path.

    Returns:
        Whether the folder already held this run.

    Raises:
        UsageError: If the folder holds a different run or other files.
    """
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    settings.pop("out", None)
    path = folder / "run.json"
    if not path.exists():
        _refuse_foreign(folder)
        run = {"kind": kind, "config": settings, "places": _places(settings, folder), **origin()}
        if settings.get("reward"):
            run["reward_files"] = _reward_files(settings)
        write_atomic(path, json.dumps(run, indent=2))
        return False
    run = read_record(path)
    _refuse_different(folder, kind, settings, {**run, "config": {**_defaults(config), **run["config"]}})
    if settings != run["config"]:
        run |= {"config": settings, "places": {**run.get("places", {}), **_places(settings, folder)}}
        write_atomic(path, json.dumps(run, indent=2))
    return True


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder with files of others; it may hold a run, or what a kill left of one that was about to begin."""
    if not folder.exists() or (folder / "run.json").exists():
        return
    locks = {lock_name(activity) for activity in ACTIVITIES.values()}
    if not folder.is_dir() or any(not is_temporary(path) and path.name not in locks for path in folder.iterdir()):
        raise UsageError(f"{folder} already exists and holds no run of ours; give another out folder")


def _refuse_different(folder: Path, kind: str, settings: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Refuse settings other than those of the run in a folder, except those that may change."""
    requested, existing = {"kind": kind, **settings}, {"kind": run["kind"], **run["config"]}
    if _names(requested.get("reward")) == _names(existing.get("reward")):
        existing["reward"] = requested.get("reward")  # the files may have been moved
        if "reward_files" in run and run["reward_files"] != _reward_files(settings):
            raise UsageError(
                f"reward={settings['reward']} has changed since the run in {folder} began; give another out folder"
            )
    changeable = [*PLACEMENT_FIELDS, *LENGTH_FIELDS.get(kind, ())]
    if settings.get("lr_schedule", "constant") != "constant":
        changeable.remove("iterations")  # a longer run would have had other learning rates from the start
    places = places_in(run)
    for name, value in requested.items():
        if name in changeable or same_place(value, places.get(name)):
            continue
        if value == existing.get(name):
            if name in places and is_there(value):
                raise UsageError(
                    f"{name}={value!r} has changed since the run in {folder} began; give another out folder"
                )
            continue
        raise UsageError(
            f"{folder} already holds a different run ({name} is {existing.get(name)!r} there, {value!r} here); give "
            "another out folder or delete this one"
        )


def _defaults(config: Any) -> dict[str, Any]:
    """The default settings; a run that began before there was a setting has its default."""
    missing = dataclasses.MISSING
    defaults = {
        field.name: field.default if field.default_factory is missing else field.default_factory()
        for field in dataclasses.fields(config)
        if field.default is not missing or field.default_factory is not missing
    }
    return dict(json.loads(json.dumps(defaults, default=str)))


def _names(rewards: Any) -> list[str]:
    """Functions of a reward setting by the names of their files: these may be moved."""
    return [Path(str(name)).name for name in rewards or []]


def _reward_files(settings: Mapping[str, Any]) -> list[str]:
    """Fingerprints of the files with the functions of a reward setting; they are not run."""
    return [fingerprint_of(Path(name.rpartition(":")[0])) for name in settings["reward"] if ":" in name]


def _places(settings: Mapping[str, Any], folder: Path) -> dict[str, dict[str, str]]:
    return {name: dataclasses.asdict(place) for name, place in places_of(settings, folder).items()}


def places_in(run: Mapping[str, Any]) -> dict[str, Place]:
    """Where the model and the problems of a run lie, by setting; empty in a ``run.json`` of older versions.

    Args:
        run: Contents of ``run.json``.
    """
    return {name: Place(**place) for name, place in run.get("places", {}).items()}


def read_record(path: Path) -> dict[str, Any]:
    """Contents of a ``run.json``: ``kind``, ``config`` and origin.

    Raises:
        DamagedError: If it is broken.
    """
    remedy = "copy it again, or give another folder"
    run = read_object(path, {"kind": str, "config": {}}, remedy=remedy)
    if "places" in run:
        require(path, run, {"places": dict.fromkeys(run["places"], PLACE)}, remedy=remedy)
    return run


def such_as(folder: Path, *kinds: str) -> str:
    """The first run of such a kind within a run of many (demo, sweep, compare), as words of a message; '' if none."""
    records = sorted((*folder.glob("*/run.json"), *folder.glob("*/*/run.json")))
    inside = (path.parent for path in records if read_record(path)["kind"] in kinds)
    return next((f", such as {run}" for run in inside), "")


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
        raise MissingError(
            f"{folder} holds a run of ollm-rl {run['kind']}, not of ollm-rl {kind}; give the out folder of one"
            f"{such_as(folder, kind)}"
        )
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
