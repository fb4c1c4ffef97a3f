"""Independent streams of random numbers, each named by a seed, a purpose and indices such as the iteration.

So runs with one seed see the same prompts, whatever their policies sample. An episode is the same on every worker, and
a resumed run needs no generator states. Environments follow Gymnasium's seeding rules instead.
"""

from __future__ import annotations

from enum import IntEnum, auto
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # torch takes seconds to import, and generating problems does not need it
    import torch


class Purpose(IntEnum):
    """What random numbers are used for; comments name the indices of a stream. Append new members at the end."""

    SFT_WEIGHTS = auto()
    SFT_TRAINER = auto()  # order of the examples, by epoch; dropout, by process
    PROBLEMS = auto()  # generated problems, by split
    POLICY_WEIGHTS = auto()
    PROMPTS = auto()  # order of the prompts, by epoch
    SAMPLING = auto()  # tokens and options of rollouts, by iteration
    MINIBATCHES = auto()  # by iteration
    SB3 = auto()  # by the iterations completed when the run started
    EVALUATION = auto()
    SEARCH = auto()  # samples, by the index of their first prompt
    SWEEP = auto()  # random settings of the trials
    INTERVALS = auto()
    PERMUTATIONS = auto()
    TEACHER_FORCED = auto()  # bootstrap intervals of ratios
    STRATIFIED = auto()  # bootstrap intervals over runs
    PROBLEM_SAMPLE = auto()  # which rows of a file or data set a limit takes


def seed_sequence(seed: int, purpose: Purpose, *indices: int) -> np.random.SeedSequence:
    """The root of a stream. Indices go into the spawn key, because numpy treats seeds [seed, 0] and [seed] alike."""
    return np.random.SeedSequence(seed, spawn_key=(int(purpose), *indices))


def integer_seed(seed: int, purpose: Purpose, *indices: int) -> int:
    """A seed for a library that takes one integer: 31 bits, because some libraries take no more."""
    return int(seed_sequence(seed, purpose, *indices).generate_state(1)[0]) >> 1


def numpy_generator(seed: int, purpose: Purpose, *indices: int) -> np.random.Generator:
    """A stream for numpy and scipy."""
    return np.random.default_rng(seed_sequence(seed, purpose, *indices))


def torch_generator(seed: int, purpose: Purpose, *indices: int) -> torch.Generator:
    """A stream for torch. It is on the CPU, so that every device gets the same numbers."""
    import torch

    state = seed_sequence(seed, purpose, *indices).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def prompt_indices(seed: int, iteration: int, count: int, total: int) -> np.ndarray:
    """Indices into ``total`` problems of the ``count`` prompts of an iteration; every epoch has its own order."""
    first = iteration * count
    orders = {
        epoch: numpy_generator(seed, Purpose.PROMPTS, epoch).permutation(total)
        for epoch in range(first // total, (first + count - 1) // total + 1)
    }
    return np.array([orders[index // total][index % total] for index in range(first, first + count)])


def sampling_uniforms(seed: int, iteration: int, episodes: int, tokens: int) -> torch.Tensor:
    """Uniform numbers in [0, 1) that sample an iteration's tokens, (episodes, tokens)."""
    import torch

    return torch.rand(episodes, tokens, generator=torch_generator(seed, Purpose.SAMPLING, iteration))
