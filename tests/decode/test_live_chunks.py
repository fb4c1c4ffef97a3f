"""Attention on a CPU that reads only the live chunks of each row, against torch's own over the whole rows."""

import errno
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import LlamaAttention

from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.live_chunks import CHUNK, LiveChunks
from ollm_rl.decode.memory import zeros
from ollm_rl.decode.named_attention import hands_over_cache
from ollm_rl.decode.row_cache import RowCache
from ollm_rl.errors import machine_fault
from tests.decode.test_engine import random_ids
from tests.tiny_models import full_hidden_states, greedy_generate, tiny_model, unshared

NAN = float("nan")
WIDTH = 4 * CHUNK
ENDS = [0, CHUNK - 2, CHUNK - 1, CHUNK, 2 * CHUNK + 5]  # positions of the new tokens, beside the ends of chunks too


def cached(heads: int, size: int, value_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random keys and values, (B, heads, WIDTH, size)."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(len(ENDS), heads, WIDTH, size, generator=generator)
    return keys, torch.randn(len(ENDS), heads, WIDTH, value_size, generator=generator)


def in_chunks(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as a CPU's cache stores them, (B, heads, chunks, CHUNK, size), each chunk of keys by feature."""
    keys, values = (states.unflatten(2, (-1, CHUNK)).transpose(1, 2) for states in (keys, values))
    keys = keys.transpose(-1, -2).contiguous().transpose(-1, -2)
    return keys.transpose(1, 2), values.contiguous().transpose(1, 2)


def mask_of(length: int, window: int = WIDTH) -> torch.Tensor:
    """The mask of rows that end at ENDS, (B, 1, 1, length)."""
    tokens, ends = torch.arange(length), torch.tensor(ENDS)[:, None]
    visible = (tokens <= ends) & (tokens > ends - window)
    return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[:, None, None]


@pytest.mark.parametrize("window", [WIDTH, 5])
@pytest.mark.parametrize(("heads", "size", "value_size"), [(3, 8, 8), (2, 4, 12)])
def test_rows_of_any_length_attend_as_in_torch_and_read_no_dead_chunk(
    heads: int, size: int, value_size: int, window: int
) -> None:
    keys, values = cached(heads, size, value_size)
    queries = torch.randn(len(ENDS), heads, 1, size, generator=torch.Generator().manual_seed(1))
    expected = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask_of(WIDTH, window), scale=0.3)
    for row, end in enumerate(ENDS):
        for states in (keys, values):
            states[row, :, (end // CHUNK + 1) * CHUNK :] = NAN
    length = 3 * CHUNK
    chunks = LiveChunks(torch.tensor(ENDS), length, WIDTH)
    read_keys, read_values = (states[:, :, : length // CHUNK] for states in in_chunks(keys, values))
    found = chunks.attend(queries, read_keys, read_values, mask_of(length, window), 0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-5, atol=1e-6)


class CuttingAttention(LlamaAttention):
    """Attention without positions that cuts the mask to the tokens of its keys."""

    def forward(self, hidden_states: Any, position_embeddings: Any = None, **kwargs: Any) -> Any:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (
            layer(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in projections
        )
        if kwargs["past_key_values"] is not None:
            key, value = kwargs["past_key_values"].update(key, value, self.layer_idx)
        mask = kwargs["attention_mask"]
        mask = None if mask is None else mask[..., : key.shape[-2]]
        attend = AttentionInterface()[self.config._attn_implementation]
        output, weights = attend(self, query, key, value, mask, scaling=self.scaling)
        return self.o_proj(output.flatten(2)), weights


def test_keys_of_a_model_that_reads_them_itself_are_stored_by_token() -> None:
    backbone = unshared("llama")
    for layer in backbone.base_model.layers:
        layer.self_attn.__class__ = CuttingAttention
    assert hands_over_cache(backbone)
    engine, prompts = DecodeEngine(backbone, 2, CHUNK + 12), random_ids(CHUNK + 3, 5)
    engine.prefill([0, 1], prompts)
    assert engine.cache is not None and engine.cache.stacks[0].dim() == 5
    found = engine.step(torch.tensor([3, 4]))
    for row, prompt in enumerate(prompts):
        expected = full_hidden_states(backbone, [*prompt, 3 + row])[-1]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_a_step_reads_nothing_that_lies_beyond_the_last_chunk_of_a_slot(family: str) -> None:
    backbone = unshared(family)
    engine = DecodeEngine(backbone, 3, CHUNK + 12)
    prompts = random_ids(CHUNK + 9, 4, CHUNK - 2)
    engine.prefill(range(3), prompts)
    assert engine.cache is not None
    for stack in engine.cache.stacks:
        dead = stack[:, 1, :, 1:] if stack.dim() == 6 else stack[:, 1, :, CHUNK:]
        dead.fill_(NAN)
    tokens = random_ids(3, 3, 3, seed=1)
    for column in range(3):  # the third slot's tokens reach its second chunk
        found = engine.step(torch.tensor([row[column] for row in tokens]))
    for slot, (prompt, written) in enumerate(zip(prompts, tokens, strict=True)):
        expected = full_hidden_states(backbone, prompt + written)[-1]
        torch.testing.assert_close(found[slot], expected, rtol=1e-4, atol=1e-4)


def test_a_released_slot_that_is_longer_than_all_others_does_not_disturb_them() -> None:
    backbone = unshared("llama")
    engine = DecodeEngine(backbone, 3, 2 * CHUNK)
    prompts = random_ids(CHUNK + 3, 5, 9)
    engine.prefill(range(3), prompts)
    active, written = torch.ones(3, dtype=torch.bool), list[torch.Tensor]()

    def choose(hidden: torch.Tensor) -> torch.Tensor:
        written.append(backbone.get_output_embeddings()(hidden).argmax(-1))
        active[0] = False
        return written[-1]

    assert engine.run(choose, active, 1) == [False, True, True]
    engine.run(choose, active, 3)
    for slot in (1, 2):
        assert [int(tokens[slot]) for tokens in written] == greedy_generate(backbone, prompts[slot], 4)


def test_slots_are_filled_moved_and_saved_alike_whether_keys_lie_in_chunks_or_not() -> None:
    shapes, device = [(2, 4), (2, 6)], torch.device("cpu")
    chunked, plain = (
        RowCache(shapes, 3, WIDTH, dtype=torch.float32, device=device, in_chunks=flag) for flag in (True, False)
    )
    states = [torch.randn(1, 3, 2, WIDTH, size) for _, size in shapes]
    single = [torch.randn(3, 1, 2, size) for _, size in shapes]
    slots, positions = torch.tensor([2, 0, 2]), torch.tensor([CHUNK + 1, 3, 2 * CHUNK])
    for cache in (chunked, plain):
        cache.write(torch.tensor([2, 0]), states, torch.tensor([1, 2]), 2 * CHUNK + 3)  # ends within a chunk
        cache.write_tokens(slots, positions, single)
        cache.copy(torch.tensor([0, 2]), torch.tensor([1, 0]), CHUNK + 5)
    for width in (WIDTH, CHUNK + 1, 2 * CHUNK, 5, 0):
        pairs = zip(*(cache.read(torch.arange(3), width) for cache in (chunked, plain)), strict=True)
        assert all(torch.equal(found, expected) for found, expected in pairs)
    keys, _ = chunked.read(torch.tensor([1]), CHUNK + 5)
    expected = states[0][0, 2, :, : CHUNK + 5].clone()
    expected[:, 3] = single[0][1, 0]
    assert torch.equal(keys[0, 0], expected)
    for cache in (chunked, plain):
        _, values = cache.read_tokens(torch.tensor([2, 0]), torch.tensor([2 * CHUNK, CHUNK + 1]))
        assert torch.equal(values, torch.stack([single[1][2], single[1][0]])), "slot 0 was copied from slot 2"


def test_prompts_are_encoded_in_passes_that_fit_the_cache_of_a_processor() -> None:
    backbone, seen = tiny_model("llama"), list[int]()
    engine = DecodeEngine(backbone, 1, 64)
    hook = backbone.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    list(engine.encode(random_ids(*[50] * 60)))
    hook.remove()
    assert sum(seen) == 3000 and max(seen) == 1000


def test_memory_in_huge_pages_is_zero_and_belongs_to_one_tensor() -> None:
    first, second = (zeros([2, 3, 5], torch.float32, torch.device("cpu")) for _ in range(2))
    first += 1
    assert first.shape == (2, 3, 5) and first.dtype == torch.float32 and first.sum() == 30
    assert second.sum() == 0


def test_memory_that_the_system_does_not_give_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(MemoryError, match="can't allocate memory: 2.0 GiB of the cache") as caught:
        zeros([2**29], torch.float32, torch.device("cpu"))
    assert "lower num_slots" in (machine_fault(caught.value) or "")


def test_few_slots_are_read_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the few slots for which all other tests here read live parts
    for slots in (15, 16):
        cache = DecodeEngine(tiny_model("gpt2"), slots, 40)._step.allocate(slots)
        in_chunks = cache.stacks[0].stride()[-1] != 1
        assert in_chunks == (slots == 16)
