"""The attention of a decoding step as a Triton kernel: each row reads its own live part of the cache and no more.

A program takes the rows of one tile (``row_tiles.py``): their common beginning once, then what each has of its own.
"""

import torch
import triton
import triton.language as tl

BLOCK = 64  # keys that one turn of a loop reads
STAGES = 2  # of these in flight
HIDDEN = tl.constexpr(-1e30)  # score of a key of another row: any score of a row's own outweighs it


@triton.jit
def _take(  # type: ignore[no-untyped-def]
    queries, highest, total, mixed, keys, values, masks, places, readable, seen,
    size, value_size, key_place, value_place,
    SCALE: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr,
):  # fmt: skip
    """One block of keys and values into the running softmax of every line that sees it."""
    sizes, value_sizes = tl.arange(0, SIZE), tl.arange(0, VALUE_SIZE)
    block = tl.load(
        keys + places[None, :] * key_place + sizes[:, None],
        mask=readable[None, :] & (sizes[:, None] < size),
        other=0.0,
    )
    scores = tl.dot(queries, block, input_precision="ieee") * SCALE
    seen = seen[:, None] & readable[None, :]
    added = tl.load(masks[:, None] + places[None, :], mask=seen, other=0.0).to(tl.float32)
    scores = tl.where(seen, scores + added, HIDDEN)
    new = tl.maximum(highest, tl.max(scores, 1))
    weights, kept = tl.exp(scores - new[:, None]), tl.exp(highest - new)
    block = tl.load(
        values + places[:, None] * value_place + value_sizes[None, :],
        mask=readable[:, None] & (value_sizes[None, :] < value_size),
        other=0.0,
    )
    mixed = mixed * kept[:, None] + tl.dot(weights.to(block.dtype), block, input_precision="ieee")
    return new, total * kept + tl.sum(weights, 1), mixed


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query, key, value, mask, positions, tiles, out,
    group, size, value_size,
    query_row, query_head, key_row, key_head, key_place, value_row, value_head, value_place,
    mask_row, out_row, out_head,
    SCALE: tl.constexpr, ROWS: tl.constexpr, LINES: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tile, head = tiles + tl.program_id(0) * (2 + ROWS), tl.program_id(1).to(tl.int64)
    holder, shared = tl.load(tile), tl.load(tile + 1)
    if holder < 0:
        return
    key += head * key_head
    value += head * value_head
    # A line is a query: of one of the rows, and of one of the heads that share the keys.
    lines, sizes, value_sizes = tl.arange(0, LINES), tl.arange(0, SIZE), tl.arange(0, VALUE_SIZE)
    members = lines // group
    rows = tl.load(tile + 2 + members, mask=members < ROWS, other=-1)
    real = rows >= 0
    heads = head * group + lines % group
    queries = tl.load(
        query + rows[:, None] * query_row + heads[:, None] * query_head + sizes[None, :],
        mask=real[:, None] & (sizes[None, :] < size),
        other=0.0,
    )
    masks = mask + rows * mask_row
    highest = tl.full([LINES], float("-inf"), tl.float32)
    total = tl.zeros([LINES], tl.float32)
    mixed = tl.zeros([LINES, VALUE_SIZE], tl.float32)
    for start in range(0, shared, BLOCK):
        places = start + tl.arange(0, BLOCK)
        highest, total, mixed = _take(
            queries, highest, total, mixed, key + holder * key_row, value + holder * value_row, masks,
            places, places < shared, real,
            size, value_size, key_place, value_place, SCALE, SIZE, VALUE_SIZE,
        )  # fmt: skip
    for member in range(ROWS):
        row = tl.load(tile + 2 + member)
        if row >= 0:
            live = tl.load(positions + row) + 1
            for start in range(shared, live, BLOCK):
                places = start + tl.arange(0, BLOCK)
                highest, total, mixed = _take(
                    queries, highest, total, mixed, key + row * key_row, value + row * value_row, masks,
                    places, places < live, members == member,
                    size, value_size, key_place, value_place, SCALE, SIZE, VALUE_SIZE,
                )  # fmt: skip
    tl.store(
        out + rows[:, None] * out_row + heads[:, None] * out_head + value_sizes[None, :],
        (mixed / total[:, None]).to(out.dtype.element_ty),
        mask=real[:, None] & (value_sizes[None, :] < value_size),
    )


def attend_live(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    tiles: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Scaled dot-product attention of one token a row.

    Args:
        query: (B, heads, 1, head size).
        key: (B, key heads, L, head size).
        value: (B, key heads, L, head size).
        mask: Added to the scores, (B, 1, 1, L).
        positions: Of the tokens, (B,); nothing behind them is read.
        tiles: Of ``tile_rows``, (B, 2 + rows of a tile).
        scale: Of the scores.

    Returns:
        (B, 1, heads, head size).
    """
    rows, heads, _, size = query.shape
    key_heads, value_size = key.shape[1], value.shape[-1]
    group, at_most = heads // key_heads, tiles.shape[1] - 2
    out = query.new_empty(rows, 1, heads, value_size)
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == mask.stride(-1) == 1 and tiles.is_contiguous()
    _attend[(rows, key_heads)](
        query, key, value, mask, positions, tiles, out,
        group, size, value_size,
        query.stride(0), query.stride(1), *key.stride()[:3], *value.stride()[:3],
        mask.stride(0), out.stride(0), out.stride(2),
        SCALE=scale,
        ROWS=at_most,
        LINES=max(16, triton.next_power_of_2(at_most * group)),
        SIZE=max(16, triton.next_power_of_2(size)),
        VALUE_SIZE=max(16, triton.next_power_of_2(value_size)),
        BLOCK=BLOCK,
        num_warps=4,
        num_stages=STAGES,
    )  # fmt: skip
    return out
