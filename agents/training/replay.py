"""A replay: the episodes of the last iterations, from which updates learn again.

Every iteration's episodes are saved in a file of their own, so that a resumed run has the same replay.
"""

import dataclasses
from pathlib import Path

import torch

from ollm_rl.agents.training.batches import UpdateBatch
from ollm_rl.decode.memory import free_memory
from ollm_rl.errors import MissingError, UsageError
from ollm_rl.files.tensors import load_tensors, sealed_tensors
from ollm_rl.runs import write_atomic

FOLDER = "replay"
STATE = tuple(field.name for field in dataclasses.fields(UpdateBatch))


class Replay:
    """The batches of the last iterations, on the policy's device.

    Args:
        size: Number of iterations.

    Attributes:
        batches: By iteration, oldest first.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.batches: dict[int, UpdateBatch] = {}

    def add(self, iteration: int, batch: UpdateBatch) -> None:
        """Add an iteration's batch and drop the oldest.

        Raises:
            UsageError: If as many batches of this size do not fit into the device's free memory.
        """
        if not self.batches:
            needed, free = (self.size - 1) * batch.num_bytes(), free_memory(batch.advantages.device)
            if needed > free:
                raise UsageError(
                    f"replay={self.size} iterations need {needed / 2**30:.1f} GiB more, but {free / 2**30:.1f} GiB are "
                    "free; lower it"
                )
        self.batches[iteration] = batch
        while len(self.batches) > self.size:
            del self.batches[min(self.batches)]

    def sample(self, count: int, generator: torch.Generator) -> UpdateBatch:
        """Some of all episodes, each at most once and all equally probable; all of them if there are fewer."""
        sizes = [len(batch.lengths) for batch in self.batches.values()]
        chosen = torch.randperm(sum(sizes), generator=generator)[:count]
        parts, first = [], 0
        for batch, size in zip(self.batches.values(), sizes, strict=True):
            rows = chosen[(chosen >= first) & (chosen < first + size)] - first
            if len(rows):
                parts.append(batch.select(rows.tolist()))
            first += size
        return UpdateBatch.join(parts)

    def num_bytes(self) -> int:
        """Memory of the batches."""
        return sum(batch.num_bytes() for batch in self.batches.values())

    def save(self, folder: Path) -> None:
        """Write the newest batch; the checkpoint that needs it is written after it."""
        newest = max(self.batches)
        write_atomic(_file(folder, newest), sealed_tensors(self.batches[newest].state()))

    def prune(self, folder: Path, *, keep: int) -> None:
        """Remove the files that none of the last ``keep`` checkpoints needs, once the newest is written."""
        for path in (folder / FOLDER).glob("[0-9]*.pt"):
            if int(path.stem) <= max(self.batches) - self.size - keep + 1:
                path.unlink()

    def load(self, folder: Path, iterations: int, device: torch.device) -> None:
        """Read the batches that a run had after some iterations.

        Raises:
            MissingError: If a file is missing.
            UsageError: If a file is damaged or holds something else.
        """
        batches = {}
        for iteration in range(max(0, iterations - self.size), iterations):
            path = _file(folder, iteration)
            if not path.exists():
                raise MissingError(f"{path} is missing, without which the run cannot resume; give another out folder")
            batches[iteration] = UpdateBatch.from_state(load_tensors(path, *STATE, device=device))
        self.batches = batches


def _file(folder: Path, iteration: int) -> Path:
    return folder / FOLDER / f"{iteration:06d}.pt"
