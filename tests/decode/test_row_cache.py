"""The stacks of keys and values: one per shape, which the layers read and write."""

import pytest
import torch
from transformers.cache_utils import DynamicCache

from ollm_rl.decode import row_cache
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.row_cache import RowCache, stacked
from tests.decode.test_engine import random_ids
from tests.tiny_models import full_hidden_states, tiny_model


@pytest.fixture(autouse=True)
def stacked_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_cache, "STACKED", ("cpu", "cuda"))


def filled_cache(*shapes: tuple[int, int], num_slots: int, max_length: int) -> RowCache:
    """A cache whose numbers all differ."""
    cache = RowCache(shapes, num_slots, max_length, dtype=torch.float32, device=torch.device("cpu"))
    for number, stack in enumerate(cache.stacks):
        stack.copy_(torch.arange(stack.numel()).reshape(stack.shape) + 1000 * number)
    return cache


def test_keys_and_values_of_all_layers_of_an_ordinary_model_are_one_tensor() -> None:
    engine = DecodeEngine(tiny_model("llama"), 3, 16)
    engine.prefill(range(3), random_ids(3, 5, 4))
    assert engine.cache is not None
    (stack,) = engine.cache.stacks
    assert stack.shape == (4, 3, 2, 16, 8)  # 2 layers, 2 key heads of 8
    one = 3 * 2 * 16 * 8 * 4  # bytes
    found = [
        states.data_ptr() - stack.data_ptr() for layer in engine.cache.layers for states in (layer.keys, layer.values)
    ]
    assert found == [0, one, 2 * one, 3 * one]
    assert all(layer.keys.is_contiguous() and layer.values.is_contiguous() for layer in engine.cache.layers)
    for layer in engine.cache.layers:  # both as one tensor
        assert layer.states.shape == (2, 3, 2, 16, 8) and layer.states.data_ptr() == layer.keys.data_ptr()
    assert [states.shape for states in engine.snapshot([0, 2]).states] == [(4, 2, 2, 4, 8)]


def test_a_pass_is_stacked_as_the_cache_of_the_slots_is() -> None:
    # Keys of the first layer are as large as values of the second, which come last.
    one, two, three, four = (
        torch.randn(2, 1, 5, 4),
        torch.randn(2, 3, 5, 6),
        torch.randn(2, 3, 5, 6),
        torch.randn(2, 1, 5, 4),
    )
    encoded = DynamicCache()
    encoded.update(one, two, 0)
    encoded.update(three, four, 1)
    saved = stacked(encoded)
    assert [states.shape for states in saved] == [(2, 2, 1, 5, 4), (2, 2, 3, 5, 6)]
    cache = filled_cache((1, 4), (3, 6), (3, 6), (1, 4), num_slots=3, max_length=7)
    cache.write(torch.tensor([2, 0]), saved, torch.tensor([1, 0]), 5)
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    assert [layer.states for layer in cache.layers] == [None, None], "a layer's keys and values differ in shape"
    for (keys, values), (new_keys, new_values) in zip(layers, [(one, two), (three, four)], strict=True):
        assert torch.equal(keys[[2, 0], :, :5], new_keys[[1, 0]])
        assert torch.equal(values[[2, 0], :, :5], new_values[[1, 0]])


@pytest.mark.parametrize("moved_bytes", [1, 2**28])
def test_slots_are_swapped_correctly_however_little_is_moved_at_a_time(
    moved_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_cache, "MOVED_BYTES", moved_bytes)
    cache = filled_cache(*[(2, 4)] * 6, num_slots=3, max_length=5)
    before = cache.stacks[0].clone()
    cache.copy(torch.tensor([0, 1]), torch.tensor([1, 0]), 4)
    (after,) = cache.stacks
    assert torch.equal(after[:, [1, 0], :, :4], before[:, [0, 1], :, :4])
    assert torch.equal(after[..., 4, :], before[..., 4, :])
    assert torch.equal(after[:, 2], before[:, 2])
    cache.write(torch.tensor([2]), [before[:, [1, 0]]], torch.tensor([1]), 3)
    assert torch.equal(after[:, 2, :, :3], before[:, 0, :, :3])
    assert torch.equal(after[:, 2, :, 3:], before[:, 2, :, 3:])
    assert torch.equal(after[:, :2, :, 4], before[:, :2, :, 4])


def test_slots_of_a_model_whose_keys_and_values_differ_in_size_agree_with_one_pass() -> None:
    backbone = tiny_model("deepseek")
    engine = DecodeEngine(backbone, 4, 24)
    held = random_ids(3, 7, 5)
    engine.prefill(range(3), held)
    assert engine.cache is not None and len(engine.cache.stacks) == 2
    saved = engine.snapshot([1])
    engine.fork(2, [0])
    engine.restore(saved, [3])
    engine.keep([0, 3])
    held = [list(held[2]), list(held[1])]
    for tokens in zip(*random_ids(9, 9, seed=1), strict=True):
        hidden = engine.step(torch.tensor(tokens))
        for row, sequence in enumerate(held):
            sequence.append(tokens[row])
            expected = full_hidden_states(backbone, sequence)[-1]
            torch.testing.assert_close(hidden[row], expected, rtol=1e-4, atol=1e-4)
