"""The device of a run, decided once, and whether kernels can be compiled for it."""

import importlib.util
import os
import shutil
from collections.abc import Sequence

import torch

from ollm_rl.errors import UsageError


def has_triton() -> bool:
    """Whether Triton, which comes with torch for CUDA, is there, and the C compiler that it starts kernels with."""
    compilers = filter(None, (os.environ.get("CC"), "gcc", "clang", "cc"))
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


HAS_TRITON = has_triton()


def to_device(numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Whole numbers as a tensor on a device; the host does not wait for what the device has still to do."""
    cuda = device.type == "cuda"  # from memory that may be paged out a copy would wait
    return torch.tensor(numbers, dtype=torch.long, pin_memory=cuda).to(device, non_blocking=cuda)


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: If the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} is not to be had here; give cpu, cuda or auto") from error
    return device
