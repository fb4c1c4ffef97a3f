"""Peak memory of a measurement; apart from the benchmarks, so that none imports what another one needs."""

import ctypes
import gc
from pathlib import Path

import torch


class PeakMemory:
    """Peak memory since construction: that of the device on CUDA, else of the process (Linux)."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM

    def read(self) -> float:
        """The peak in bytes."""
        if self.cuda:
            return float(torch.cuda.max_memory_allocated())
        return 1024.0 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
