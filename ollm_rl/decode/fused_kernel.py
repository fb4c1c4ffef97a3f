"""Rotary embedding, cache write and attention of a decoding step as one Triton kernel (Su et al. 2021).

As in `row_kernel` each row reads only its own live part of the cache, and its beginning where it is shared.

Letters: B rows, S slots, L length of the cache, D head size.
"""

import torch
import triton
import triton.language as tl

from ollm_rl.decode.row_kernel import NARROW_BYTES, WIDE

LOG2_E = 1.4426950408889634  # weights are powers of two, not of e
NARROW = (32, 1, 3)  # as in `row_kernel`, with one more iteration in flight


@triton.jit
def _turned(numbers, partners, cosine, sine, mask):  # type: ignore[no-untyped-def]
    """Heads turned by their position: pointers to their numbers and to those of their other halves."""
    states = tl.load(numbers, mask=mask, other=0.0).to(tl.float32) * cosine
    return states + tl.load(partners, mask=mask, other=0.0).to(tl.float32) * sine


@triton.jit
def _attend_before(  # type: ignore[no-untyped-def]
    queries, new_key, new_value, keys, values, row, source, num_shared, before, states_row, states_token,
    FACTOR: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Attention to a new token and the ``before`` tokens before it. The loop reads nothing that was just written."""
    sizes = tl.arange(0, SIZE)
    highest = tl.sum(queries.to(tl.float32) * new_key.to(tl.float32)[None, :], 1) * FACTOR
    total = tl.full([GROUP], 1.0, tl.float32)
    mixed = tl.zeros([GROUP, SIZE], tl.float32) + new_value.to(tl.float32)[None, :]
    for start in range(0, before, BLOCK):
        indices = start + tl.arange(0, BLOCK)
        rows = tl.where(indices < num_shared, source, row)
        old_keys = tl.load(
            keys + rows[None, :] * states_row + indices[None, :] * states_token + sizes[:, None],
            mask=indices[None, :] < before,
            other=0.0,
        )
        scores = tl.dot(queries, old_keys, input_precision="ieee") * FACTOR
        scores = tl.where(indices[None, :] < before, scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights, decay = tl.exp2(scores - new_highest[:, None]), tl.exp2(highest - new_highest)
        old_values = tl.load(
            values + rows[:, None] * states_row + indices[:, None] * states_token + sizes[None, :],
            mask=indices[:, None] < before,
            other=0.0,
        )
        mixed = mixed * decay[:, None] + tl.dot(weights.to(old_values.dtype), old_values, input_precision="ieee")
        total = total * decay + tl.sum(weights, 1)
        highest = new_highest
    return mixed / total[:, None]


@triton.jit
def _turn_and_attend(  # type: ignore[no-untyped-def]
    query, key, value, cosines, sines, states, positions, sources, shared, out,
    group, query_row, key_row, value_row, angle_row, states_half, states_row, states_head, states_token, out_row,
    FACTOR: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    position = tl.load(positions + row)
    source, num_shared = tl.load(sources + row), tl.load(shared + row).to(tl.int32)
    heads, sizes = tl.arange(0, GROUP), tl.arange(0, SIZE)
    first_half = sizes < SIZE // 2
    partners = tl.where(first_half, sizes + SIZE // 2, sizes - SIZE // 2)
    cosine = tl.load(cosines + row * angle_row + sizes).to(tl.float32)
    sine = tl.load(sines + row * angle_row + sizes).to(tl.float32)
    sine = tl.where(first_half, -sine, sine)
    in_group = heads[:, None] < group
    head_ids = head * group + heads
    query_heads = query + row * query_row + head_ids[:, None] * SIZE
    queries = _turned(
        query_heads + sizes[None, :], query_heads + partners[None, :], cosine[None, :], sine[None, :], in_group
    ).to(states.dtype.element_ty)
    key_head = key + row * key_row + head * SIZE
    new_key = _turned(key_head + sizes, key_head + partners, cosine, sine, sizes < SIZE).to(states.dtype.element_ty)
    new_value = tl.load(value + row * value_row + head * SIZE + sizes)
    keys = states + head * states_head
    values = keys + states_half
    place = row * states_row + position * states_token + sizes
    tl.store(keys + place, new_key)
    tl.store(values + place, new_value)
    result = _attend_before(
        queries, new_key, new_value, keys, values, row, source, num_shared, position.to(tl.int32),
        states_row, states_token, FACTOR, GROUP, SIZE, BLOCK,
    )  # fmt: skip
    tl.store(
        out + row * out_row + head_ids[:, None] * SIZE + sizes[None, :], result.to(out.dtype.element_ty), mask=in_group
    )


def turn_and_attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    states: torch.Tensor,
    positions: torch.Tensor,
    sources: torch.Tensor,
    shared: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Turn queries and keys of one token per row by its position, store keys and values, and attend to all until there.

    Args:
        query: (B, 1, heads * D), D a power of two from 16 on.
        key: (B, 1, key heads * D).
        value: (B, 1, key heads * D).
        cosines: Of the angles by which a head is turned, (B, 1, D).
        sines: As ``cosines``.
        states: Keys and values of the slots, (2, S, key heads, L, D); those of the first B are written at
            ``positions``. One tensor, because torch.compile copies one of two that share memory.
        positions: Positions of the tokens, (B,); nothing after them is read.
        sources: For each row, the row from which it reads its first keys and values, (B,).
        shared: Number of tokens that each row reads from there, (B,).
        scale: Factor of the scores.

    Returns:
        (B, 1, heads * D).
    """
    rows, groups, size = query.shape[0], states.shape[2], states.shape[-1]
    group = query.shape[-1] // size // groups
    assert size >= 16 and size == triton.next_power_of_2(size)
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == states.stride(-1) == 1
    assert cosines.shape == sines.shape == (rows, 1, size) and cosines.stride() == sines.stride()
    block, warps, stages = NARROW if size * states.element_size() <= NARROW_BYTES else WIDE
    out = query.new_empty(rows, 1, groups * group * size)
    _turn_and_attend[(rows, groups)](
        query, key, value, cosines, sines, states, positions, sources, shared, out,
        group, query.stride(0), key.stride(0), value.stride(0), cosines.stride(0), *states.stride()[:4], out.stride(0),
        FACTOR=scale * LOG2_E,
        GROUP=max(16, triton.next_power_of_2(group)),
        SIZE=size,
        BLOCK=block,
        num_warps=warps,
        num_stages=stages,
    )  # fmt: skip
    return out
