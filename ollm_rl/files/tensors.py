"""Files of tensors and plain data, written with a checksum and read without executing anything."""

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollm_rl.errors import DamagedError, UsageError, one_line
from ollm_rl.files.checksums import KEY, MARK, ZEROS, check_file, refused, seal

if TYPE_CHECKING:
    import torch


def sealed_tensors(state: dict[str, Any]) -> bytes:
    """Content of a file that `load_tensors` reads; ``state`` holds only tensors and plain data."""
    import torch  # late: checking a file needs no torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return sealed_zip(buffer.getvalue())


def sealed_weights(weights: "dict[str, torch.Tensor]") -> bytes:
    """Content of a safetensors file of weights, with its checksum in the metadata."""
    from safetensors.torch import save

    return seal(save(weights, {KEY: ZEROS}))


def load_sealed_weights(path: Path, *, device: "str | torch.device" = "cpu") -> "dict[str, torch.Tensor]":
    """Read a checked safetensors file.

    Raises:
        DamagedError: If the file is damaged.
        UsageError: If it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        check_file(path)
        weights: dict[str, torch.Tensor] = load_file(path, device=str(device))
    except (DamagedError, SafetensorError) as error:
        raise DamagedError(f"{path} cannot be read ({one_line(error)}); copy or download it again") from error
    return weights


def sealed_zip(data: bytes) -> bytes:
    """A zip file without a comment, with its checksum as the comment."""
    comment = b"{" + MARK + ZEROS.encode() + b'"}'
    assert data.endswith(b"\0\0"), "the last two bytes of a zip are the length of its comment"
    return seal(data[:-2] + struct.pack("<H", len(comment)) + comment)


def check_tensors(path: Path) -> None:
    """Compare a file with its checksum, or with those of its zip entries if it was written before there was one.

    Raises:
        DamagedError: If the file is damaged.
        UsageError: If the file cannot be read.
    """
    if check_file(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except OSError as error:
        raise refused(path, error) from error
    except (ValueError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedError(f"{path} is damaged ({one_line(error)})") from error
    if broken is not None:
        raise DamagedError(f"{path} is damaged: the checksum of {broken} differs")


def load_tensors(path: Path, *names: str, device: "str | torch.device" = "cpu") -> dict[str, Any]:
    """Read a checked file of tensors and plain data; other objects are refused, not built.

    Args:
        path: The file.
        names: Entries that it must have.
        device: Device of the tensors.

    Raises:
        DamagedError: If the file is damaged.
        UsageError: If it holds something else.
    """
    import torch

    try:
        check_tensors(path)
    except DamagedError as error:
        raise DamagedError(f"{one_line(error)}; give another checkpoint, or train again") from error
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a forged pickle can raise anything
        reason = one_line(str(error).partition("\n")[0] or type(error).__name__)
        raise UsageError(
            f"{path} holds more than tensors and plain data and is not loaded ({reason}); give another checkpoint"
        ) from error
    if not isinstance(state, dict) or (missing := [name for name in names if name not in state]):
        lacks = f"it has no {missing[0]!r}" if isinstance(state, dict) else "it holds no entries"
        raise UsageError(f"{path} is no checkpoint of ollm-rl ({lacks}); give another one")
    return state
