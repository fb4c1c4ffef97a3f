"""How many slots fit into the memory of a device, and how many are worth having."""

import psutil
import torch

from ollm_rl.errors import UsageError

SHARE = 0.8  # of the free memory for the cache; the rest is for activations, prompts that wait, and trajectories


def free_memory(device: torch.device) -> int:
    """Bytes that a process can still take on a device."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds without using it is free for torch.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def check_capacity(num_slots: int, slot_bytes: int, max_length: int, device: torch.device) -> None:
    """Refuse more slots than fit.

    Raises:
        UsageError: If they do not fit; names the most that would.
    """
    free = free_memory(device)
    most = int(SHARE * free) // slot_bytes
    if num_slots > most:
        raise UsageError(
            f"num_slots={num_slots} of {max_length} tokens need {num_slots * slot_bytes / 2**30:.1f} GiB, but of the "
            f"{free / 2**30:.1f} GiB free on {device} at most {SHARE:.0%} are for slots; the largest batch that fits "
            f"is {most}"
        )


def worthwhile_slots(needed: int, device: torch.device) -> int:
    """Number of slots worth having where so many are needed.

    On CUDA another number of slots takes another graph, so there it is rounded up to one of four sizes between two
    powers of two; a step of fewer than 32 slots takes no less time.
    """
    if device.type != "cuda":
        return needed
    needed = max(needed, 32)
    unit = 1 << max(0, (needed - 1).bit_length() - 3)
    return -(-needed // unit) * unit
