"""Checksums (SHA-256) within the files that we write, and beside those that libraries write.

A file of ours holds the text ``"sha256":"DIGEST"``: JSON as its first entry, safetensors in its metadata, which come
first, a zip (torch, stable-baselines3) in its comment, which comes last. The digest is that of the file with zeros in
its place, so every byte counts and the file is still written in one exchange. Files without it, from before there were
checksums, are accepted.
"""

import errno
import hashlib
import mmap
from pathlib import Path

from ollm_rl.errors import DamagedError, UsageError

KEY = "sha256"
ZEROS = "0" * 64
SUMS_FILE = "SHA256SUMS"  # in the format of sha256sum, so that ``sha256sum -c`` reads it too
MARK = f'"{KEY}":"'.encode()
HEX = b"0123456789abcdef"


def seal(data: bytes) -> bytes:
    """Put the digest into a file's content, which holds MARK and ZEROS where a digest belongs."""
    place = _place(data)
    assert place is not None and data[place : place + len(ZEROS)] == ZEROS.encode()
    return data[:place] + _digest(data, place) + data[place + len(ZEROS) :]


def check_file(path: Path) -> bool:
    """Compare a file with its digest; returns whether it has one.

    Raises:
        DamagedError: If it differs, or the file is empty.
        UsageError: If the file cannot be read, which says nothing about what it holds.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            place = _place(data)
            if place is None:
                return False
            if data[place : place + len(ZEROS)] == _digest(data, place):
                return True
    except ValueError as error:  # also for an empty file, which cannot be mapped
        raise DamagedError(f"{path} is damaged ({error})") from error
    except OSError as error:
        raise refused(path, error) from error
    raise DamagedError(f"{path} is damaged: its checksum differs")


def digest_of(path: Path) -> str:
    """Digest of a file as it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sums(folder: Path, leave_out: tuple[str, ...] = ()) -> str:
    """Content of SUMS_FILE for the files of a folder, sub-folders not included."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in (SUMS_FILE, *leave_out))
    return "".join(f"{digest_of(path)}  {path.name}\n" for path in paths)


def check_folder(folder: Path) -> bool:
    """Compare the files of a folder with its SUMS_FILE; returns whether it has one.

    Raises:
        DamagedError: If a file differs or is missing, or SUMS_FILE is damaged itself.
        UsageError: If a file cannot be read.
    """
    listing = folder / SUMS_FILE
    if not listing.is_file():
        return False
    try:
        lines = listing.read_text().splitlines()
        if not lines:
            raise DamagedError(f"{listing} is damaged: it is empty")
        for line in lines:
            digest, _, name = line.partition("  ")
            if len(digest) != len(ZEROS) or not name or Path(name).name != name:
                raise DamagedError(f"{listing} is damaged: it has the line {line[:80]!r}")
            if digest_of(folder / name) != digest:
                raise DamagedError(f"{folder / name} is damaged: its checksum in {SUMS_FILE} differs")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise DamagedError(f"{folder} is damaged: {error}") from error
    except OSError as error:
        raise refused(folder, error) from error
    return True


def refused(path: Path, error: OSError) -> UsageError:
    """The error for a file that the system does not read: damage only if the disk says so."""
    kind = DamagedError if error.errno == errno.EIO else UsageError
    return kind(f"{path} cannot be read ({error.strerror})")


def _place(data: bytes | mmap.mmap) -> int | None:
    """Where the digest is; None if there is none.

    Raises:
        ValueError: If there is a digest whose mark is broken.
    """
    if data[:2] == b"PK":
        place = len(data) - len('"}') - len(ZEROS)
    else:
        place = len("{" if data[:1] == b"{" else b'8 bytes {"__metadata__":{') + len(MARK)
    if place >= len(MARK) and data[place - len(MARK) : place] == MARK:
        return place
    if sum(digit in HEX for digit in data[max(0, place) : place + len(ZEROS)]) > 0.75 * len(ZEROS):
        raise ValueError("its checksum is broken")
    return None


def _digest(data: bytes | mmap.mmap, place: int) -> bytes:
    """Digest, as text, of the content with zeros at a place."""
    with memoryview(data) as view, view[:place] as head, view[place + len(ZEROS) :] as tail:
        digest = hashlib.sha256(head)
        digest.update(ZEROS.encode())
        digest.update(tail)
    return digest.hexdigest().encode()
