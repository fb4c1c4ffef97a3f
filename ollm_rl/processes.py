"""Several processes that make one run together, one per GPU, as ``torchrun`` or ``accelerate launch`` starts them.

All read the same settings, models and problems. Only the first, rank 0, writes, locks and prints. The others
get what it finds by `from_first`. In a run of one process these functions do nothing, and torch is not imported.
"""

import atexit
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ollm_rl.errors import UsageError, one_line

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # for the others, while one computes; the launcher ends them if one dies
TOGETHER = ("sft", "train")  # commands that several processes run together
PLACE = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # where a process is and where it finds the first one
# What accelerate can do and we do not support, by the variable that switches it on.
NOT_SUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "its parallelism config",
}


def world_size() -> int:
    """Number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE") or 1) if "RANK" in os.environ else 1


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def speaks_for_machine() -> bool:
    """Whether this process prints what all processes of its machine find, such as a wrong setting."""
    return world_size() == 1 or int(os.environ.get("LOCAL_RANK") or 0) == 0


def check_launcher(command: str) -> None:
    """Refuse a command, or settings of a launcher, that several processes do not run together.

    Raises:
        UsageError: It says what to do instead.
    """
    count = world_size()
    if count > 1 and command not in TOGETHER:
        raise UsageError(
            f"ollm-rl {command} is one process, and a launcher started {count} (WORLD_SIZE={count}); start it without "
            "torchrun or accelerate launch"
        )
    if command not in TOGETHER:
        return
    if count > 1 and (missing := [name for name in PLACE if not os.environ.get(name)]):
        raise UsageError(f"RANK and WORLD_SIZE={count} are set, but not {missing[0]}; start the processes by torchrun")
    for variable, name in NOT_SUPPORTED.items():
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise UsageError(f"accelerate launch uses {name}, which is not supported; leave it out ({variable})")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        raise UsageError(f"mixed_precision={precision!r} of accelerate launch is not used; leave it out and give dtype")


def join(device: str) -> "torch.device":
    """Connect the processes; returns this process's device, which is a GPU of its own if ``device`` is CUDA.

    Args:
        device: ``cpu``, ``cuda`` or ``auto``; in one process any name that `resolve_device` knows.

    Raises:
        UsageError: If the device is not available, or this machine has fewer GPUs than processes.
    """
    import torch
    from torch import distributed

    from ollm_rl.devices import resolve_device

    if world_size() == 1:
        return resolve_device(device)
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device={device!r} is one device, and there are {world_size()} processes; give cuda or cpu")
    backend, chosen = "gloo", torch.device("cpu")
    if device != "cpu" and torch.cuda.is_available():
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE") or world_size()), torch.cuda.device_count()
        if here > gpus:
            raise UsageError(f"{here} processes were started on a machine with {gpus} GPUs; start at most {gpus}")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before anything is put on the first GPU
        backend, chosen = "cpu:gloo,cuda:nccl", torch.device("cuda", torch.cuda.current_device())
    else:
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # not cpu:0, with which older transformers cannot load
    resolve_device(str(chosen) if device == "auto" else device)
    if not distributed.is_initialized():
        distributed.init_process_group(backend, timeout=PATIENCE)
        atexit.register(lambda: distributed.destroy_process_group() if distributed.is_initialized() else None)
    return chosen


@contextmanager
def only_first_speaks() -> Iterator[None]:
    """Within this context the other processes print nothing and warn of nothing."""
    if rank() == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def say(text: str) -> None:
    """Print a line on stderr, beside progress bars, in the first process only."""
    if rank() == 0:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)


def from_first(action: Callable[[], T]) -> T:
    """Run an action in the first process only, and return its result in all of them; the others wait for it.

    Raises:
        SystemExit: In the others, if it raised an exception in the first process.
    """
    if world_size() == 1:
        return action()
    from torch.distributed import broadcast_object_list

    outcome: list[Any] = [False, None]
    if rank() > 0:
        broadcast_object_list(outcome)
        if not outcome[0]:
            sys.exit(1)
        return outcome[1]
    try:
        result = action()
    except BaseException:
        broadcast_object_list(outcome)
        raise
    broadcast_object_list([True, result])
    return result


def wait_for_all() -> None:
    """Return once all processes are here."""
    if world_size() > 1:
        from torch.distributed import barrier

        barrier()


def gathered(thing: T) -> list[T]:
    """What each process gives, by rank."""
    if world_size() == 1:
        return [thing]
    from torch.distributed import all_gather_object

    things: list[Any] = [None] * world_size()
    all_gather_object(things, thing)
    return things


def weighted_means(values: "torch.Tensor", weight: float) -> tuple["torch.Tensor", float]:
    """Means of the processes' values, (n,), and this process's share of all weight."""
    if world_size() == 1:
        return values, 1.0
    from torch.distributed import all_reduce

    sums = values.new_full((len(values) + 1,), weight).double()
    sums[:-1] *= values
    all_reduce(sums)
    return (sums[:-1] / sums[-1]).to(values), weight / float(sums[-1])


def sum_over_processes(values: "torch.Tensor") -> "torch.Tensor":
    """The values of all processes, added up in place."""
    if world_size() > 1:
        from torch.distributed import all_reduce

        all_reduce(values)
    return values


def take_from_first(tensors: Iterable["torch.Tensor"]) -> None:
    """Overwrite tensors with those of the first process."""
    if world_size() > 1:
        from torch.distributed import broadcast

        for tensor in tensors:
            broadcast(tensor, src=0)


def each_from_first(items: Iterator[T]) -> Iterator[T]:
    """The items, none of them None, of an iterator that only the first process advances."""
    while (item := from_first(lambda: next(items, None))) is not None:
        yield item


def sum_gradients(weights: Iterable["torch.Tensor"]) -> None:
    """Replace gradients by their sums over all processes; one that a process lacks counts as 0."""
    if world_size() == 1:
        return
    import torch

    weights = list(weights)
    flat = torch.cat([(torch.zeros_like(w) if w.grad is None else w.grad).flatten().float() for w in weights])
    sum_over_processes(flat)
    for weight, total in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        weight.grad = total.view_as(weight).to(weight.dtype)


def lost_others(error: BaseException) -> str | None:
    """One line, if an exception says that another process of the run ended."""
    text = one_line(error)
    if world_size() == 1 or not ("gloo" in text or "NCCL" in text or type(error).__name__.startswith("Dist")):
        return None
    return f"process {rank()} lost the others ({text[:120]}); see the message of the one that ended first"
