"""Where a run's model and data lie: an absolute path and one relative to the run, so that moved and copied runs work.

Both are guarded by a fingerprint: other weights under an old name are never taken for those of the run.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollm_rl.errors import MissingError

PATH_SETTINGS = ("model", "backbone", "data", "eval_data", "held_out")  # settings that may name a local path
FILE_PREFIXES = ("jsonl:", "parquet:")  # of settings that name a file of problems
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
BLOCKS, BLOCK = 64, 4096  # evenly spaced samples of a file and their bytes


@dataclass(frozen=True, kw_only=True)
class Place:
    """A file or folder with weights or problems.

    Attributes:
        absolute: Its absolute path.
        relative: Its path relative to the folder that names it.
        fingerprint: See `fingerprint_of`.
    """

    absolute: str
    relative: str
    fingerprint: str


def places_of(settings: Mapping[str, Any], folder: Path) -> dict[str, Place]:
    """The places of those settings that name something on this machine.

    Args:
        settings: Settings as in ``run.json``.
        folder: Folder of the run.
    """
    found = {}
    for name in PATH_SETTINGS:
        if (path := _path(settings.get(name))) is not None and (fingerprint := fingerprint_of(path)):
            target = path.resolve()
            relative = os.path.relpath(target, folder.resolve())
            found[name] = Place(absolute=str(target), relative=relative, fingerprint=fingerprint)
    return found


def fingerprint_of(path: Path) -> str:
    """A short hash of samples of a file, or of a folder's files with weights; empty if there are none.

    A copy has the same, whatever its name; weights of any further training have another.
    """
    files = sorted(file for pattern in WEIGHTS for file in path.glob(pattern)) if path.is_dir() else [path]
    files = [file for file in files if file.is_file()]
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''} {size} ".encode())
        with file.open("rb") as stream:
            for index in range(BLOCKS):
                stream.seek(index * max(0, size - BLOCK) // (BLOCKS - 1))
                digest.update(stream.read(BLOCK))
                if size <= BLOCK:
                    break
    return digest.hexdigest()[:16] if files else ""


def same_place(value: Any, place: Place | None) -> bool:
    """Whether a setting names, by whatever path, what a place holds."""
    path = _path(value)
    return place is not None and path is not None and fingerprint_of(path) == place.fingerprint


def is_there(value: Any) -> bool:
    """Whether a setting names something on this machine."""
    return _path(value) is not None


def located(name: str, setting: str, folder: Path, place: Place | None) -> str:
    """Where the thing that a run or an adapter names is now.

    Args:
        name: The name as it was given, relative to the folder where the run began.
        setting: The setting with this name, for the error.
        folder: Folder of the run or adapter.
        place: Its place then; None for what is not on this machine, and in folders of older versions.

    Returns:
        The first that holds the same of the name itself, the absolute path, and the path relative to ``folder``;
        the name itself without a place.

    Raises:
        MissingError: If none holds the same; the message names all.
    """
    if place is None:
        return name
    prefix = _file_prefix(name)
    tried = [name.removeprefix(prefix), place.absolute, os.path.normpath(folder / place.relative)]
    for path in tried:
        if fingerprint_of(Path(path)) == place.fingerprint:
            return prefix + path
    faults = [f"{path} ({'has changed' if Path(path).exists() else 'is missing'})" for path in dict.fromkeys(tried)]
    raise MissingError(
        f"{folder} was trained on {setting}={name!r}, which is in none of {', '.join(faults)}; put it back into one"
    )


def _path(value: Any) -> Path | None:
    """The local path that a setting names; None if it names nothing on this machine."""
    if not isinstance(value, str | Path):
        return None
    prefix = _file_prefix(str(value))
    path = Path(str(value).removeprefix(prefix))
    return path if (path.is_file() if prefix else path.is_dir()) else None


def _file_prefix(value: str) -> str:
    """What precedes the path in a setting that names a file of problems; empty in others."""
    return next((prefix for prefix in FILE_PREFIXES if value.startswith(prefix)), "")
