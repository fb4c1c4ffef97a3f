"""The attention of a decoding step as a Triton kernel, in which each row reads only its own live part of the cache.

Rows with the same prompt read it from one row. So it is loaded once from the device's memory, and for the other rows
from the device's cache.
"""

import torch
import triton
import triton.language as tl

# Keys per iteration of the loop, warps, and iterations in flight: for heads of up to NARROW_BYTES, 64 numbers in
# bfloat16, and for wider ones.
NARROW_BYTES = 128
NARROW, WIDE = (32, 1, 2), (64, 4, 2)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query, key, value, mask, positions, sources, shared, out,
    group, size, value_size,
    query_row, query_head, key_row, key_head, key_token, value_row, value_head, value_token,
    mask_row, out_row, out_head,
    SCALE: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    live = tl.load(positions + row) + 1
    source, num_shared = tl.load(sources + row), tl.load(shared + row)
    heads, sizes, value_sizes = tl.arange(0, GROUP), tl.arange(0, SIZE), tl.arange(0, VALUE_SIZE)
    head_ids = head * group + heads
    queries = tl.load(
        query + row * query_row + head_ids[:, None] * query_head + sizes[None, :],
        mask=(heads[:, None] < group) & (sizes[None, :] < size),
        other=0.0,
    )
    highest = tl.full([GROUP], float("-inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    mixed = tl.zeros([GROUP, VALUE_SIZE], tl.float32)
    for start in range(0, live, BLOCK):
        indices = start + tl.arange(0, BLOCK)
        rows = tl.where(indices < num_shared, source, row)
        keys = tl.load(
            key + rows[None, :] * key_row + head * key_head + indices[None, :] * key_token + sizes[:, None],
            mask=(indices[None, :] < live) & (sizes[:, None] < size),
            other=0.0,
        )
        scores = tl.dot(queries, keys, input_precision="ieee") * SCALE
        bias = tl.load(mask + row * mask_row + indices, mask=indices < live, other=float("-inf"))
        scores += bias[None, :].to(tl.float32)
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights, decay = tl.exp(scores - new_highest[:, None]), tl.exp(highest - new_highest)
        values = tl.load(
            value
            + (rows[:, None] * value_row + head * value_head + indices[:, None] * value_token + value_sizes[None, :]),
            mask=(indices[:, None] < live) & (value_sizes[None, :] < value_size),
            other=0.0,
        )
        mixed = mixed * decay[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * decay + tl.sum(weights, 1)
        highest = new_highest
    tl.store(
        out + row * out_row + head_ids[:, None] * out_head + value_sizes[None, :],
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
    """Scaled dot-product attention of one token per row.

    Args:
        query: (B, heads, 1, head size).
        key: (B, key heads, L, head size).
        value: (B, key heads, L, head size).
        mask: Mask added to the scores, (B, 1, 1, L).
        positions: Positions of the tokens, (B,); nothing after them is read.
        sources: For each row, the row from which it reads its first keys and values, (B,).
        shared: Number of tokens that each row reads from there, (B,).
        scale: Factor of the scores.

    Returns:
        (B, 1, heads, head size).
    """
    rows, heads, _, size = query.shape
    groups, value_size = key.shape[1], value.shape[-1]
    out = query.new_empty(rows, 1, heads, value_size)
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == mask.stride(-1) == 1
    block, warps, stages = NARROW if max(size, value_size) * key.element_size() <= NARROW_BYTES else WIDE
    _attend[(rows, groups)](
        query, key, value, mask, positions, sources, shared, out,
        heads // groups, size, value_size,
        query.stride(0), query.stride(1), *key.stride()[:3], *value.stride()[:3],
        mask.stride(0), out.stride(0), out.stride(2),
        SCALE=scale,
        GROUP=max(16, triton.next_power_of_2(heads // groups)),
        SIZE=max(16, triton.next_power_of_2(size)),
        VALUE_SIZE=max(16, triton.next_power_of_2(value_size)),
        BLOCK=block,
        num_warps=warps,
        num_stages=stages,
    )  # fmt: skip
    return out
