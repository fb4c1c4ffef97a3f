"""Several processes train on one batch: each on its share of the solutions, with the gradient of the whole batch.

Every process is given the whole batch, in the order and with the steps and epochs of one process, and collates only
its share: solution i belongs to process i modulo their number. So runs differ from those of one process only by
floating-point sums.
"""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer

from ollm_rl.options.model import IGNORED, CountedStates
from ollm_rl.processes import gathered, rank, wait_for_all, world_size

Example = dict[str, Any]


class Share:
    """Collates this process's share of a batch, of which it is given all examples."""

    def __init__(self, collate: Callable[[list[Example]], dict[str, torch.Tensor]]) -> None:
        self.collate = collate

    def __call__(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """Collate it; if the batch has fewer examples than there are processes, it may hold nothing that counts."""
        return self.collate(examples[rank() :: world_size()] or [_nothing(examples[0])])


def _nothing(example: Example) -> Example:
    """An example of token ids or stored hidden states, of which no position counts."""
    if "labels" in example:
        return {**example, "labels": [IGNORED] * len(example["labels"])}
    return {name: tensor[:0] for name, tensor in example.items()}


class SharingTrainer(Trainer):
    """``Trainer`` whose batches are shared by the processes, where its own would give each a batch of its own."""

    def get_train_dataloader(self) -> DataLoader:
        """The batches of one process, collated to this process's share."""
        loader: DataLoader = DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            sampler=self._get_train_sampler(),
            collate_fn=Share(self.data_collator),
            pin_memory=self.args.dataloader_pin_memory,
        )
        return prepare_data_loader(
            loader,
            device=self.args.device,
            put_on_device=True,
            num_processes=1,
            process_index=0,
            use_seedable_sampler=True,
            data_seed=self.args.seed,
        )

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # one file per process
        wait_for_all()  # the files that mark a checkpoint as complete come after them


def first_positions(states: CountedStates, limit: int) -> CountedStates:
    """The first ``limit`` positions of the whole batch, on every process, from its share of them."""
    if world_size() == 1:
        return CountedStates(*(part[:limit] for part in states))
    device = states.targets.device
    begins = (states.offsets[1:limit] == 0).nonzero()[:, 0].add(1).tolist()
    solutions = list(zip(*(part[:limit].cpu().tensor_split(begins) for part in states), strict=True))
    in_order = [each for turn in zip_longest(*gathered(solutions)) for each in turn if each is not None]
    return CountedStates(*(torch.cat(parts)[:limit].to(device) for parts in zip(*in_order, strict=True)))


def stand_in(states: CountedStates) -> CountedStates:
    """One position for a share without any; its loss is to have no weight."""
    return CountedStates(*(part.new_zeros(1, *part.shape[1:]) for part in states))
