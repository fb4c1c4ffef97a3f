"""Streams of random numbers: all are distinct, and equal names give equal numbers."""

import itertools

import numpy as np
import torch

from ollm_rl.streams import Purpose, integer_seed, numpy_generator, prompt_indices, seed_sequence, torch_generator

SEEDS = (0, 1, 2)
PLACES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (2,), (0, 0), (0, 1), (1, 0))


def test_no_two_streams_are_equal() -> None:
    names = list(itertools.product(SEEDS, Purpose, PLACES))
    states = {tuple(seed_sequence(seed, purpose, *place).generate_state(4)) for seed, purpose, place in names}
    # The streams that numpy makes from a seed, single or in a list: one numpy stream has all three names.
    plain = [[seed, *place] for seed, place in itertools.product(SEEDS, PLACES)]
    others = {tuple(np.random.SeedSequence(parts).generate_state(4)) for parts in plain}
    assert len(states) == len(names)
    assert not states & others
    assert len(others) < len(plain)  # why a list of numbers cannot name a stream


def test_equal_names_give_equal_numbers() -> None:
    for purpose in Purpose:
        first, second = (numpy_generator(3, purpose, 1).random(4) for _ in range(2))
        assert (first == second).all()
        drawn = [torch.rand(4, generator=torch_generator(3, purpose, 1)) for _ in range(2)]
        assert torch.equal(*drawn)


def test_purposes_keep_their_numbers() -> None:
    # A purpose put between others would change the numbers of every run.
    assert [purpose.value for purpose in Purpose] == list(range(1, len(Purpose) + 1))
    assert (Purpose.SFT_WEIGHTS, Purpose.PROMPTS, Purpose.SB3, Purpose.TEACHER_FORCED) == (1, 5, 8, 14)


def test_integer_seeds_fit_libraries_that_take_32_bits_and_count_up_from_them() -> None:
    drawn = [integer_seed(seed, Purpose.PROBLEMS) for seed in range(2000)]
    assert len(set(drawn)) == 2000
    assert 2**30 < max(drawn) < 2**31


def test_prompts_come_epoch_after_epoch_each_in_its_own_order() -> None:
    drawn = np.concatenate([prompt_indices(7, iteration, 4, 10) for iteration in range(5)])
    first, second = drawn[:10], drawn[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
