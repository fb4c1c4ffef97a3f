"""Slots that continue from single saved tokens."""

import pytest
import torch
from transformers import PreTrainedModel

from ollm_rl.decode import token_store
from ollm_rl.decode.engine import MANY_SLOTS, DecodeEngine
from ollm_rl.decode.token_store import TokenStore
from tests.decode.test_engine import random_ids
from tests.decode.test_slots import backbone, greedy
from tests.tiny_models import tiny_model

__all__ = ["backbone"]


@pytest.mark.parametrize("num_slots", [4, MANY_SLOTS])  # read as a whole, and in chunks
@pytest.mark.parametrize("moved_bytes", [1, 2**28])  # tokens one by one, and all at once
def test_a_slot_continues_from_saved_tokens(
    num_slots: int, moved_bytes: int, backbone: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_store, "MOVED_BYTES", moved_bytes)
    short, long = random_ids(9, 12)
    engine = DecodeEngine(backbone, num_slots, 48)
    engine.prefill(range(4), [short, long, short, long])
    greedy(engine, 6)  # appends 5 tokens to each
    store = TokenStore(engine, 20)
    store.save([0] * 5, range(9, 14), [3, 1, 4, 2, 0])
    store.save([1] * 5, range(12, 17), range(10, 15))
    first = greedy(engine, 8)
    engine.crop(2, 9)
    engine.crop(3, 12)
    engine.step(torch.ones(len(engine.lengths), dtype=torch.long))  # the cropped slots get another token
    store.continue_slots([2, 3], [9, 12], [[3, 1, 4, 2, 0], range(10, 15)])
    assert engine.lengths[2:4] == [14, 17]
    engine.step(torch.tensor([0, 0, first[0][0], first[1][0], *[0] * (len(engine.lengths) - 4)]))
    assert greedy(engine, 7)[2:4] == [tokens[1:] for tokens in first[:2]]
    store.continue_slots([2], [9], [[]])
    assert engine.lengths[2] == 9


def test_tokens_that_a_slot_does_not_hold_or_has_no_room_for_are_refused() -> None:
    engine = DecodeEngine(tiny_model("llama"), 2, 6)
    engine.prefill([0], random_ids(5))
    store = TokenStore(engine, 2)
    with pytest.raises(ValueError, match="position=5 is not within the 5 tokens of slot 0"):
        store.save([0, 0], [4, 5], [0, 1])
    store.save([0, 0], [3, 4], [0, 1])
    engine.prefill([1], random_ids(4, seed=1))
    with pytest.raises(ValueError, match="7 tokens do not fit slots of 6"):
        store.continue_slots([1, 0], [3, 5], [[], [0, 1]])
    assert engine.lengths == [5, 4]
    engine.release(1)
    with pytest.raises(ValueError, match="length=1 is not within 1 to 0, the tokens of slot 1"):
        store.continue_slots([1], [1], [[0, 1]])
    assert engine.lengths == [5, 0]
