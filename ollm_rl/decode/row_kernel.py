"""The attention of a decoding step as a Triton kernel: each row reads its own live part of the cache and no more.

Rows of one prompt read it in one place: it comes from the device's memory once, and for the others from its cache.
"""

import torch
import triton
import triton.language as tl

BLOCK = 64  # keys that one turn of the loop reads
STAGES = 2  # of these in flight


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query, key, value, mask, positions, sources, shared, out,
    group, size, value_size,
    query_row, query_head, key_row, key_head, key_place, value_row, value_head, value_place,
    mask_row, out_row, out_head,
    SCALE: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    live = tl.load(positions + row) + 1
    source, common = tl.load(sources + row), tl.load(shared + row)
    heads, sizes, value_sizes = tl.arange(0, GROUP), tl.arange(0, SIZE), tl.arange(0, VALUE_SIZE)
    mine = head * group + heads
    queries = tl.load(
        query + row * query_row + mine[:, None] * query_head + sizes[None, :],
        mask=(heads[:, None] < group) & (sizes[None, :] < size),
        other=0.0,
    )
    highest = tl.full([GROUP], float("-inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    mixed = tl.zeros([GROUP, VALUE_SIZE], tl.float32)
    for start in range(0, live, BLOCK):
        places = start + tl.arange(0, BLOCK)
        holders = tl.where(places < common, source, row)
        keys = tl.load(
            key + holders[None, :] * key_row + head * key_head + places[None, :] * key_place + sizes[:, None],
            mask=(places[None, :] < live) & (sizes[:, None] < size),
            other=0.0,
        )
        scores = tl.dot(queries, keys, input_precision="ieee") * SCALE
        added = tl.load(mask + row * mask_row + places, mask=places < live, other=float("-inf"))
        scores += added[None, :].to(tl.float32)
        new = tl.maximum(highest, tl.max(scores, 1))
        weights, kept = tl.exp(scores - new[:, None]), tl.exp(highest - new)
        values = tl.load(
            value
            + (holders[:, None] * value_row + head * value_head + places[:, None] * value_place + value_sizes[None, :]),
            mask=(places[:, None] < live) & (value_sizes[None, :] < value_size),
            other=0.0,
        )
        mixed = mixed * kept[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * kept + tl.sum(weights, 1)
        highest = new
    tl.store(
        out + row * out_row + mine[:, None] * out_head + value_sizes[None, :],
        (mixed / total[:, None]).to(out.dtype.element_ty),
        mask=(heads[:, None] < group) & (value_sizes[None, :] < value_size),
    )


def attend_live(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    sources: torch.Tensor,
    shared: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Scaled dot-product attention of one token a row.

    Args:
        query: (B, heads, 1, head size).
        key: (B, key heads, L, head size).
        value: (B, key heads, L, head size).
        mask: Added to the scores, (B, 1, 1, L).
        positions: Of the tokens, (B,); nothing behind them is read.
        sources: Rows whose first keys and values are the row's own too, (B,).
        shared: How many of them, (B,).
        scale: Of the scores.

    Returns:
        (B, 1, heads, head size).
    """
    rows, heads, _, size = query.shape
    groups, value_size = key.shape[1], value.shape[-1]
    out = query.new_empty(rows, 1, heads, value_size)
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == mask.stride(-1) == 1
    _attend[(rows, groups)](
        query, key, value, mask, positions, sources, shared, out,
        heads // groups, size, value_size,
        query.stride(0), query.stride(1), *key.stride()[:3], *value.stride()[:3],
        mask.stride(0), out.stride(0), out.stride(2),
        SCALE=scale,
        GROUP=max(16, triton.next_power_of_2(heads // groups)),
        SIZE=max(16, triton.next_power_of_2(size)),
        VALUE_SIZE=max(16, triton.next_power_of_2(value_size)),
        BLOCK=BLOCK,
        num_warps=4,
        num_stages=STAGES,
    )  # fmt: skip
    return out
