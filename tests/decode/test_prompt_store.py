"""Prompts that wait for a slot: how often they are encoded, and how many of their tokens are stored."""

from collections.abc import Iterator, Sequence

import pytest
import torch

from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.prompt_store import PromptStore
from ollm_rl.decode.row_cache import Snapshot
from tests.decode.test_engine import random_ids
from tests.tiny_models import full_hidden_states, tiny_model

PASS_TOKENS = 10  # two prompts of 5


@pytest.fixture
def engine() -> DecodeEngine:
    return DecodeEngine(tiny_model("llama"), 8, 16, pass_tokens=PASS_TOKENS)


@pytest.fixture
def passes(engine: DecodeEngine) -> Iterator[list[tuple[int, ...]]]:
    """Numbers of prompts and tokens of every pass."""
    seen: list[tuple[int, ...]] = []
    hook = engine.backbone.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    hook.remove()


def test_a_stored_prompt_that_comes_next_takes_no_room_in_a_pass(
    engine: DecodeEngine, passes: list[tuple[int, ...]]
) -> None:
    store = PromptStore(engine)
    first, held, second, new, *others = random_ids(*[5] * 7)
    store.fill([0], [first], [held])
    store.fill([0], [second], [held, new])
    assert passes == [(2, 5), (2, 5)]
    store.fill([0, 1, 4], others, [new, held])  # others are more than a pass
    store.fill([2, 3], [held, new])
    hidden = engine.hidden[2:4]
    assert passes == [(2, 5)] * 3 + [(1, 5)]
    for row, prompt in enumerate((held, new)):
        expected = full_hidden_states(engine.backbone, prompt)[-1]
        torch.testing.assert_close(hidden[row], expected, rtol=1e-4, atol=1e-4)


def test_a_prompt_that_does_not_fit_the_pass_ends_it_and_the_rest_is_forgotten(
    engine: DecodeEngine, passes: list[tuple[int, ...]]
) -> None:
    store = PromptStore(engine)
    first, held, second, long, third = random_ids(5, 5, 5, 6, 5)
    store.fill([0], [first], [held])
    store.fill([0], [second], [long, held])
    store.fill([0], [held], [first, third])
    assert passes == [(2, 5), (1, 5), (2, 5)]


def test_waiting_prompts_stay_within_four_passes(
    engine: DecodeEngine, passes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PromptStore(engine)
    upcoming, needed = random_ids(*[5] * 12), random_ids(*[5] * 9, seed=1)
    for prompt in needed:
        store.fill([0], [prompt], upcoming)
    # Each pass has room for one more prompt until seven wait; with the needed one they have 40 tokens.
    assert passes == [(2, 5)] * 7 + [(1, 5)] * 2
    begun: list[Snapshot] = []
    begin = engine.begin

    def spy(slots: Sequence[int], states: Sequence[tuple[Snapshot, int]]) -> None:
        begun.extend(snapshot for snapshot, _ in states)
        begin(slots, states)

    monkeypatch.setattr(engine, "begin", spy)
    store.fill(range(7), upcoming[:7])
    hidden = engine.hidden[:7].clone()
    # Prompts that were encoded with them are no longer stored: 7 rows of 5 tokens are left.
    held = {id(snapshot): snapshot.states[0].shape for snapshot in begun}
    assert sum(rows * width for _, rows, _, width, _ in held.values()) == 35
    store.fill([0], [upcoming[7]])
    assert passes[9:] == [(1, 5)]
    for row, prompt in enumerate(upcoming[:7]):
        expected = full_hidden_states(engine.backbone, prompt)[-1]
        torch.testing.assert_close(hidden[row], expected, rtol=1e-4, atol=1e-4)


def test_needed_prompts_are_stored_however_many_they_are(engine: DecodeEngine, passes: list[tuple[int, ...]]) -> None:
    store = PromptStore(engine)
    needed = random_ids(*[8] * 6)  # 48 tokens, more than may wait
    for _ in range(2):
        store.fill(range(6), needed)
        assert passes == [(1, 8)] * 6


def test_prompts_that_come_up_twice_are_encoded_once(engine: DecodeEngine, passes: list[tuple[int, ...]]) -> None:
    store = PromptStore(engine)
    one, two, three = random_ids(5, 5, 5)
    store.fill([0, 1], [one, one], [one, two, two])
    store.fill([2, 3, 4], [two, two, three], [two, one, one])
    store.fill([5, 6], [one, three])
    # ``one`` was still stored, so ``three`` had its own pass.
    assert passes == [(2, 5), (1, 5)]
