"""The device of a run, decided once, and whether kernels can be compiled for it."""

import importlib.util
import os
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ollm_rl.errors import UsageError


def has_triton() -> bool:
    """Whether Triton (part of torch for CUDA) and the C compiler that it needs to launch kernels are installed."""
    compilers = filter(None, (os.environ.get("CC"), "gcc", "clang", "cc"))
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


HAS_TRITON = has_triton()


def to_device(
    numbers: Sequence[int] | Sequence[Sequence[int]] | np.ndarray | torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Integers as a tensor on a device. The host does not wait for the device's pending work."""
    tensor = numbers if isinstance(numbers, torch.Tensor) else torch.from_numpy(np.array(numbers, dtype=np.int64))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # a copy from pageable memory would block the host


class Fetched:
    """A tensor that is being copied to the host, after the device's pending work. Only a call waits for the copy.

    Args:
        tensor: The tensor. Later changes to it are not in the copy.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        cuda = tensor.device.type == "cuda"
        self._copy = tensor.to("cpu", non_blocking=True) if cuda else tensor.clone()
        self._copied = torch.cuda.current_stream(tensor.device).record_event() if cuda else None

    def ready(self) -> bool:
        """Whether a call would not wait."""
        return self._copied is None or self._copied.query()

    def __call__(self) -> Any:
        """The tensor as a list."""
        self._wait()
        return self._copy.tolist()

    def numpy(self) -> np.ndarray:
        """The tensor as an array of the caller's own."""
        self._wait()
        array: np.ndarray = self._copy.numpy()
        return array if self._copied is None else array.copy()  # memory that the device copies to is scarce

    def _wait(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()


def resolve_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is CUDA if available, else the CPU.

    A GPU with a number becomes the current one of this process, on which graphs are recorded and kernels are started.

    Raises:
        UsageError: If the device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # device "meta" holds no numbers
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UsageError(f"device {name!r} is not available here; give cpu, cuda or auto") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device
