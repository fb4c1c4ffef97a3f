"""JSON that is read from disk: broken, incomplete or damaged files get one line that names file and remedy."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ollm_rl.errors import DamagedError, UsageError, one_line
from ollm_rl.files.checksums import KEY, MARK, ZEROS, check_file, seal

AGAIN = "copy it again"
Entries = Mapping[str, "type | Entries | list[Entries]"]


def sealed_json(content: dict[str, Any]) -> bytes:
    """An object as JSON that holds its checksum as the first entry; ``content`` has at least one."""
    text = json.dumps(content, indent=1)
    return seal(f'{{{MARK.decode()}{ZEROS}",'.encode() + text[1:].encode())


def read_object(path: Path, entries: Entries | None = None, *, remedy: str = AGAIN) -> dict[str, Any]:
    """Read a JSON object and compare it with its checksum if it has one, which is left out.

    Args:
        path: The file.
        entries: Entries that it must have, with their types. ``float`` stands for any number that is not infinite,
            a mapping for an object with these entries, and a list with one mapping for a list of such objects.
        remedy: What the user can do, for the error.

    Raises:
        DamagedError: If it cannot be read, is damaged, no object, or lacks an entry.
    """
    with _explained(path, remedy):
        check_file(path)
        content = _checked(_parse(path.read_bytes()), {})
    content.pop(KEY, None)
    require(path, content, entries or {}, remedy=remedy)
    return content


def require(path: Path, content: dict[str, Any], entries: Entries, *, remedy: str = AGAIN) -> None:
    """Refuse an object that was read from a file and lacks an entry; see `read_object`."""
    with _explained(path, remedy):
        _checked(content, entries)


def read_rows(path: Path, entries: Entries, *, remedy: str = AGAIN) -> list[dict[str, Any]]:
    """Read objects from a JSON list, or from the lines of a file ``.jsonl``; see `read_object`."""
    with _explained(path, remedy):
        data = path.read_bytes()
        rows = [_parse(line) for line in data.splitlines()] if path.suffix == ".jsonl" else _parse(data)
        return _checked_rows(rows, entries)


@contextmanager
def _explained(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise DamagedError(f"{one_line(error)}; {remedy}") from error
    except RecursionError as error:
        raise DamagedError(f"{path} cannot be read (nested too deeply); {remedy}") from error
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read ({one_line(error)}); {remedy}") from error


def _parse(data: bytes) -> Any:
    return json.loads(data.decode())  # json would guess another encoding for some garbage


def _checked_rows(rows: Any, entries: Entries) -> list[dict[str, Any]]:
    if not isinstance(rows, list):
        raise ValueError("it holds no list")
    return [_checked(row, entries, f"row {number}") for number, row in enumerate(rows, 1)]


def _checked(content: Any, entries: Entries, name: str = "it") -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{name} is no object")
    for entry, kind in entries.items():
        if entry not in content:
            raise ValueError(f"{name} has no {entry!r}")
        if isinstance(kind, Mapping):
            _checked(content[entry], kind, repr(entry))
        elif isinstance(kind, list):
            _checked_rows(content[entry], kind[0])
        elif not (_is_number(content[entry]) if kind is float else isinstance(content[entry], kind)):
            raise ValueError(f"{entry!r} of {name} is {str(content[entry])[:40]!r}")
    return content


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > sys.float_info.max
