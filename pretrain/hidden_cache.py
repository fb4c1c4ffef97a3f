"""The frozen backbone's hidden states on disk: computed once, read by every later epoch and run.

Consecutive examples share a shard, a safetensors file that is read memory-mapped. A shard that is damaged, incomplete
or from another cache is computed again, so a kill or damage costs only the shards it hit.

Letters: N counted positions, n counted positions of one example, H hidden.
"""

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset
from tqdm import tqdm

from ollm_rl.backbones.loading import fingerprint
from ollm_rl.errors import UsageError, one_line
from ollm_rl.options.model import IGNORED, OptionModel
from ollm_rl.pretrain.data import PadRight
from ollm_rl.processes import from_first, rank, wait_for_all, world_size

VERSION = 1  # of the content of a shard and its computation; raise it with any change, so that no old shard is read
POSITIONS_PER_SHARD = 2**16  # 75 MB at H = 576, 0.5 GB at H = 4096; a kill costs at most this many
ROWS = 32  # examples of similar length in one batch
HEADER = 1024  # bytes reserved for the header of a shard
UNFINISHED = "unfinished"  # beginning of the name of a folder with the shard that a process is writing

logger = logging.getLogger(__name__)


class HiddenCache(Dataset[dict[str, torch.Tensor]]):
    """Item i holds ``hidden_states`` (n, H) in bfloat16 and ``targets`` (n,) of example i.

    Each process opens a file when it first reads it. The hidden states are views of the mapped file.

    Args:
        folder: Folder of the shards.
        shards: Example indices of each shard.
        counts: n of each example.
    """

    def __init__(self, folder: Path, shards: Sequence[range], counts: np.ndarray) -> None:
        self.folder = folder
        self._counts = counts
        self._shard_of = np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])
        self._starts = np.concatenate([np.zeros(0, int), *(_starts(counts[shard]) for shard in shards)])
        self._open: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        hidden_states, targets = self._tensors(int(self._shard_of[index]))
        start = int(self._starts[index])
        stop = start + int(self._counts[index])
        return {"hidden_states": hidden_states[start:stop], "targets": targets[start:stop].long()}

    def __getstate__(self) -> dict[str, Any]:
        # Pickling an open shard, as for a spawned worker, would copy all of it.
        return {**self.__dict__, "_open": {}}

    def _tensors(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        if number not in self._open:
            with safe_open(_path(self.folder, number), "pt") as file:
                self._open[number] = file.get_tensor("hidden_states"), file.get_tensor("targets")
        return self._open[number]


def collate_states(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The fields of ``CountedStates`` for a batch of items: (N, H), (N,) and (N,)."""
    return {
        "hidden_states": torch.cat([item["hidden_states"] for item in items]),
        "targets": torch.cat([item["targets"] for item in items]),
        "offsets": torch.cat([torch.arange(len(item["targets"])) for item in items]),
    }


def open_hidden_cache(
    model: OptionModel,
    examples: Sequence[dict[str, list[int]]],
    folder: Path,
    *,
    pad_token_id: int,
    positions_per_shard: int = POSITIONS_PER_SHARD,
) -> HiddenCache:
    """Verify the cache of these examples, compute the shards it lacks, and open it.

    Each cache has its own sub-folder, named by a hash of backbone, precision, examples and code version. A second
    run that needs the same cache waits for the first; the processes of one run share the work.

    Args:
        model: Its backbone's states are stored; the plug-in does not matter.
        examples: ``input_ids`` and ``labels`` of each example, as ``encode_examples`` returns them.
        folder: Parent folder of all caches.
        pad_token_id: Any token; padding is not stored.
        positions_per_shard: Maximum counted positions per shard; an example is never split.

    Raises:
        UsageError: If the folder cannot be made or its disk has no room for the missing shards.
    """
    counts = np.array([np.count_nonzero(np.array(each["labels"][1:]) != IGNORED) for each in examples], dtype=int)
    shards = split_into_shards(counts, positions_per_shard)
    key = cache_key(model, examples, positions_per_shard)
    cache_folder = folder / key[:16]
    with ExitStack() as lock:

        def prepare() -> list[int]:
            _make(cache_folder)
            lock.enter_context(_locked(cache_folder))
            missing = _missing_shards(cache_folder, key, shards)
            if missing:
                _check_room(cache_folder, [counts[shards[number]] for number in missing], model.hidden_size)
            return missing

        mine = from_first(prepare)[rank() :: world_size()]
        positions = sum(int(counts[shards[number]].sum()) for number in mine)
        if mine:
            with tqdm(total=positions, desc="hidden states", unit=" positions", disable=rank() > 0) as bar:
                for number in mine:
                    shard_examples = [examples[index] for index in shards[number]]
                    tensors = _compute(model, shard_examples, counts[shards[number]], PadRight(pad_token_id), bar)
                    _write(_path(cache_folder, number), tensors, _identity(key, number, shards))
        wait_for_all()
    if not all(_path(cache_folder, number).exists() for number in range(len(shards))):
        raise UsageError(f"cache folder {cache_folder} is not the same on all machines; give one that they share")
    return HiddenCache(cache_folder, shards, counts)


def split_into_shards(counts: np.ndarray, positions_per_shard: int) -> list[range]:
    """Ranges of whole examples with at most ``positions_per_shard`` positions, unless a single example has more."""
    starts, filled = [0], 0
    for index, count in enumerate(counts.tolist()):
        if filled and filled + count > positions_per_shard:
            starts.append(index)
            filled = 0
        filled += count
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(counts)], strict=True) if start < stop]


def cache_key(model: OptionModel, examples: Sequence[dict[str, list[int]]], positions_per_shard: int) -> str:
    """Hash of everything that determines the shards. The token ids stand for tokenizer, prompts and data."""
    parts = (VERSION, fingerprint(model.backbone), model.backbone.dtype, positions_per_shard, ROWS)
    digest = hashlib.sha256(repr(parts).encode())
    for example in examples:
        ids, labels = example["input_ids"], example["labels"]
        digest.update(np.array([len(ids), len(labels), *ids, *labels], dtype=np.int64).tobytes())
    return digest.hexdigest()


def _make(cache_folder: Path) -> None:
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cache folder {cache_folder} cannot be made ({error.strerror}); give another folder"
        ) from error


@contextmanager
def _locked(cache_folder: Path) -> Iterator[None]:
    """Lock a folder against other processes; the system releases the lock if this process is killed."""
    lock = FileLock(cache_folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process is at work on %s; waiting for it", cache_folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _path(cache_folder: Path, number: int) -> Path:
    return cache_folder / f"shard-{number:05}.safetensors"


def _starts(counts: np.ndarray) -> np.ndarray:
    """First position of each example within its shard."""
    return np.cumsum(counts) - counts


def _identity(key: str, number: int, shards: Sequence[range]) -> dict[str, Any]:
    """Metadata of a shard, without its checksum."""
    first, last = shards[number][0], shards[number][-1]
    return {"key": key, "shard": number, "shards": len(shards), "first_example": first, "last_example": last}


def _missing_shards(cache_folder: Path, key: str, shards: Sequence[range]) -> list[int]:
    """Numbers of the shards to compute. Removes faulty shards and those that a killed process left half-written."""
    for folder in cache_folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(folder, ignore_errors=True)
    missing = []
    for number in tqdm(range(len(shards)), desc="verify hidden states", unit=" shards", delay=1, leave=False):
        path = _path(cache_folder, number)
        if path.exists():
            fault = _fault(path, _identity(key, number, shards))
            if fault is None:
                continue
            logger.warning("%s is not used and is computed again: %s", path, fault)
            path.unlink()
        missing.append(number)
    return missing


def _fault(path: Path, identity: dict[str, Any]) -> str | None:
    """Why a file is not the shard that belongs here; None if it is. Reads the whole file, page by page."""
    try:
        with safe_open(path, "pt") as file:
            stored = json.loads((file.metadata() or {})["shard"])
            checksum = _checksum({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no iterator)
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        return f"it cannot be read ({one_line(error)})"
    if stored == {**identity, "checksum": checksum}:
        return None
    belongs_here = isinstance(stored, dict) and identity.items() <= stored.items()
    return "its checksum differs" if belongs_here else "it belongs to another cache or is another shard"


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """CRC-32 of names, types, shapes and contents."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _check_room(cache_folder: Path, counts: Sequence[np.ndarray], hidden_size: int) -> None:
    """Print the disk space that the missing shards need.

    Raises:
        UsageError: If the disk has less free space.
    """
    positions = sum(int(each.sum()) for each in counts)
    per_position = 2 * hidden_size + 4  # bfloat16 and an int32 target
    need = positions * per_position + sum(4 * len(each) + HEADER for each in counts)
    free = shutil.disk_usage(cache_folder).free
    sizes = [tqdm.format_sizeof(size, "B") for size in (need, free)]
    if need > free:
        raise UsageError(
            f"hidden states of {positions} positions need {sizes[0]} in {cache_folder}, but {sizes[1]} are free; "
            "give a cache folder on a larger disk, use fewer problems, or train without a cache"
        )
    print(f"hidden states of {positions} positions need {sizes[0]} in {cache_folder}; {sizes[1]} are free")


def _compute(
    model: OptionModel, examples: Sequence[dict[str, list[int]]], counts: np.ndarray, collate: PadRight, bar: tqdm
) -> dict[str, torch.Tensor]:
    """The tensors of one shard. Batches never cross shards, so its bytes do not depend on when a build was killed."""
    hidden_states = torch.empty(counts.sum(), model.hidden_size, dtype=torch.bfloat16)
    targets = torch.empty(counts.sum(), dtype=torch.int32)
    starts = _starts(counts)
    # The longest first, so that a batch too large for memory fails immediately.
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda index: -len(examples[index]["input_ids"]))
    for rows in (order[i : i + ROWS] for i in range(0, len(order), ROWS)):
        batch = collate([examples[row] for row in rows])
        states = model.counted_states(**{name: tensor.to(model.backbone.device) for name, tensor in batch.items()})
        positions = torch.cat([torch.arange(starts[row], starts[row] + counts[row]) for row in rows])
        hidden_states[positions] = states.hidden_states.to(torch.bfloat16).cpu()
        targets[positions] = states.targets.int().cpu()
        bar.update(len(positions))
    return {"hidden_states": hidden_states, "targets": targets, "counts": torch.tensor(counts, dtype=torch.int32)}


def _write(path: Path, tensors: dict[str, torch.Tensor], identity: dict[str, Any]) -> None:
    """Write a shard atomically: a kill at any moment leaves it complete, or leaves only an unfinished file to remove.

    Like ``runs.write_atomic``, but without a second copy of the tensors in memory.
    """
    # One entry, since safetensors writes several entries in an order that changes from process to process.
    metadata = {"shard": json.dumps({**identity, "checksum": _checksum(tensors)})}
    # safetensors itself writes to a temporary file, which a kill leaves behind. A separate folder holds both files.
    unfinished = path.parent / f"{UNFINISHED}-{rank()}" / path.name
    unfinished.parent.mkdir(exist_ok=True)
    try:
        save_file(tensors, unfinished, metadata)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.chmod(0o644)
        unfinished.replace(path)
    finally:
        shutil.rmtree(unfinished.parent)
