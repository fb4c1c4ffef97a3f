"""Streams of random numbers, each named by seed, purpose and place, and independent of every other.

So runs of one seed see the same prompts whatever their policy draws, an episode is the same whichever worker runs it,
and a resumed run needs no generator states. Environments seed themselves as Gymnasium has it.
"""

from __future__ import annotations

from enum import IntEnum, auto
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # problems are drawn without torch, which takes seconds to load
    import torch


class Purpose(IntEnum):
    """What random numbers are drawn for, and what names the place of a stream. New members go to the end."""

    SFT_WEIGHTS = auto()
    SFT_TRAINER = auto()  # order of the examples, and dropout
    PROBLEMS = auto()  # generated ones, by split
    POLICY_WEIGHTS = auto()
    PROMPTS = auto()  # their order, by epoch
    SAMPLING = auto()  # tokens and options of rollouts, by iteration
    MINIBATCHES = auto()  # by iteration
    SB3 = auto()  # by the iterations done when the run started
    EVALUATION = auto()
    SEARCH = auto()  # samples, by their first prompt
    SWEEP = auto()  # settings of the trials
    INTERVALS = auto()
    PERMUTATIONS = auto()
    TEACHER_FORCED = auto()  # intervals of ratios


def seed_sequence(seed: int, purpose: Purpose, *place: int) -> np.random.SeedSequence:
    """The root of a stream. Numpy keeps a spawn key apart from the seed; a list such as [seed, 0] is that of [seed]."""
    return np.random.SeedSequence(seed, spawn_key=(int(purpose), *place))


def integer_seed(seed: int, purpose: Purpose, *place: int) -> int:
    """A stream for a library that takes one integer, of 31 bits since some take no more."""
    return int(seed_sequence(seed, purpose, *place).generate_state(1)[0]) >> 1


def numpy_generator(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """A stream for numpy and scipy."""
    return np.random.default_rng(seed_sequence(seed, purpose, *place))


def torch_generator(seed: int, purpose: Purpose, *place: int) -> torch.Generator:
    """A stream for torch, on the CPU, so that every device gets the same numbers."""
    import torch

    state = seed_sequence(seed, purpose, *place).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def prompt_indices(seed: int, iteration: int, count: int, total: int) -> np.ndarray:
    """Which of ``total`` problems an iteration of ``count`` prompts asks: epoch after epoch, each in its own order."""
    first = iteration * count
    orders = {
        epoch: numpy_generator(seed, Purpose.PROMPTS, epoch).permutation(total)
        for epoch in range(first // total, (first + count - 1) // total + 1)
    }
    return np.array([orders[index // total][index % total] for index in range(first, first + count)])


def sampling_uniforms(seed: int, iteration: int, episodes: int, tokens: int) -> torch.Tensor:
    """The numbers in [0, 1) that sample an iteration's tokens, (episodes, tokens)."""
    import torch

    return torch.rand(episodes, tokens, generator=torch_generator(seed, Purpose.SAMPLING, iteration))
