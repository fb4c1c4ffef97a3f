"""The device of a run, decided once."""

import importlib.util

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None  # the compiler of CUDA kernels that comes with torch


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: If the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not to be had here; give cpu, cuda or auto") from error
    return device
