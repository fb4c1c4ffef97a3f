"""Streams of random numbers, each named by seed, purpose and place, apart from every other.

So runs of one seed see the same prompts whatever their policy draws, an episode is the same whichever worker runs it,
and a resumed run needs no generator states.
"""

import numpy as np
import torch

WEIGHTS, PROMPTS, SAMPLING, SHUFFLING = range(4)


def stream_seed(*parts: int) -> int:
    """The seed of the stream of this name."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def prompt_indices(seed: int, iteration: int, count: int, total: int) -> np.ndarray:
    """Which of ``total`` problems an iteration of ``count`` prompts asks: epoch after epoch, each in its own order."""
    first = iteration * count
    orders = {
        epoch: np.random.default_rng(np.random.SeedSequence([seed, PROMPTS, epoch])).permutation(total)
        for epoch in range(first // total, (first + count - 1) // total + 1)
    }
    return np.array([orders[place // total][place % total] for place in range(first, first + count)])


def sampling_uniforms(seed: int, iteration: int, episodes: int, tokens: int) -> torch.Tensor:
    """The numbers in [0, 1) that sample an iteration's tokens, (episodes, tokens)."""
    generator = torch.Generator().manual_seed(stream_seed(seed, SAMPLING, iteration))
    return torch.rand(episodes, tokens, generator=generator)
