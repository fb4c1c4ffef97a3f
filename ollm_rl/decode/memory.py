"""The number of slots that fits the memory of a device, the number worth using, and memory that is fast to read."""

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import psutil
import torch

from ollm_rl.errors import UsageError

SHARE = 0.8  # of the free memory for the cache; the rest is for activations, waiting prompts, and trajectories


def free_memory(device: torch.device) -> int:
    """Bytes that a process can still allocate on a device."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    # Memory that torch has reserved but not allocated is free for torch.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def check_capacity(num_slots: int, slot_bytes: int, held: str, device: torch.device) -> None:
    """Refuse more slots than fit.

    Args:
        num_slots: Number of slots.
        slot_bytes: Bytes that each needs.
        held: What they hold, for the message.
        device: Where they are.

    Raises:
        UsageError: If they do not fit; the message states the maximum number that fits.
    """
    free = free_memory(device)
    max_slots = int(SHARE * free) // slot_bytes
    if num_slots > max_slots:
        raise UsageError(
            f"num_slots={num_slots} of {held} need {num_slots * slot_bytes / 2**30:.1f} GiB, but of the "
            f"{free / 2**30:.1f} GiB free on {device} at most {SHARE:.0%} are for slots; the largest batch that fits "
            f"is {max_slots}"
        )


def worthwhile_slots(needed: int, device: torch.device) -> int:
    """Number of slots worth using if ``needed`` are needed.

    On CUDA every number of slots needs its own graph, so ``needed`` is rounded up to one of four sizes between two
    powers of two. Below 32 slots a step does not get faster.
    """
    if device.type != "cuda":
        return needed
    needed = max(needed, 32)
    unit = 1 << max(0, (needed - 1).bit_length() - 3)
    return -(-needed // unit) * unit


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """As ``torch.zeros``; on a CPU in huge pages where the system has them.

    A step reads pieces from all over the cache. In pages of 4 KiB most of them are a miss of the address cache too.

    Raises:
        MemoryError: If the system does not give so much.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux
    if device.type != "cpu" or advice is None:
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"can't allocate memory: {size / 2**30:.1f} GiB of the cache") from error
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(advice)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)
