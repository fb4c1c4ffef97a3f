"""The most probable token at hidden states as a Triton kernel: product and maximum in one, so no logits are written.

Each program multiplies some hidden states with a part of the vocabulary and keeps their highest logit and its token. A
second, small maximum is over the parts.

Letters: N hidden states, H hidden, V vocabulary, P parts of the vocabulary.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import library


class Blocks(NamedTuple):
    """Sizes of the blocks that one program multiplies, and how it is run."""

    states: int = 128
    tokens: int = 256
    inner: int = 64  # numbers of a hidden state per iteration of the loop
    warps: int = 8
    stages: int = 3  # iterations in flight
    resident: int = 1  # programs that a multiprocessor runs at a time
    flatten: bool = True  # whether the loops over blocks and over inner numbers are pipelined as one


# Large blocks read less from the device's cache. With two resident programs one multiplies while the other compares.
BLOCKS, SMALL_BLOCKS = Blocks(), Blocks(tokens=128, warps=4, resident=2, flatten=False)
SHARED_MEMORY = 3 * (128 + 256) * 64 * 2  # bytes that BLOCKS need; GPUs other than A100, H100 and B200 have less
TOKEN_BITS = 0x7FFFFFFF  # the lower half of a result; counted down from here, so that of equal logits the first wins


@triton.jit
def _highest(  # type: ignore[no-untyped-def]
    states, weight, offsets, out,
    num_states, num_tokens, size, parts, blocks_per_part,
    HAS_OFFSETS: tl.constexpr, EVEN: tl.constexpr,
    STATES: tl.constexpr, TOKENS: tl.constexpr, INNER: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    rows = tl.program_id(0) * STATES + tl.arange(0, STATES)
    columns, inner = tl.arange(0, TOKENS), tl.arange(0, INNER)
    # Beyond the ends the last state and the last token are read again, which needs no mask in the loop.
    state_ids = tl.minimum(rows, num_states - 1).to(tl.int64)
    state_pointers = states + state_ids[:, None] * size + inner[None, :]
    best = tl.full([STATES], float("-inf"), tl.float32)
    best_token = tl.zeros([STATES], tl.int32)
    for block in tl.range(part * blocks_per_part, (part + 1) * blocks_per_part, flatten=FLATTEN):
        tokens = tl.minimum(block * TOKENS + columns, num_tokens - 1)
        weight_pointers = weight + tokens.to(tl.int64)[None, :] * size + inner[:, None]
        logits = tl.zeros([STATES, TOKENS], tl.float32)
        for start in tl.range(0, size, INNER):
            if EVEN:
                state, column = tl.load(state_pointers + start), tl.load(weight_pointers + start)
            else:
                state = tl.load(state_pointers + start, mask=start + inner[None, :] < size, other=0.0)
                column = tl.load(weight_pointers + start, mask=start + inner[:, None] < size, other=0.0)
            logits = tl.dot(state, column, logits)
        if HAS_OFFSETS:
            logits += tl.load(offsets + tokens)[None, :]
        highest, place = tl.max(logits, 1, return_indices=True)
        better = highest > best  # of equal logits the first stays
        best = tl.where(better, highest, best)
        best_token = tl.where(better, block * TOKENS + place, best_token)
    best_token = tl.minimum(best_token, num_tokens - 1)
    # Integers in the order of the logits, so that the maximum over the parts is of integers and finds the token too.
    bits = (best + 0.0).to(tl.int32, bitcast=True)  # + 0.0 makes -0.0 equal to 0.0
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    result = (order << 32) | (0x7FFFFFFF - best_token).to(tl.int64)
    tl.store(out + rows.to(tl.int64) * parts + part, result, mask=rows < num_states)


# An operator of its own, because a compiled caller would specialise on N, from which the number of parts follows.
@library.custom_op("ollm_rl::most_probable", mutates_args=())
def most_probable(states: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor | None) -> torch.Tensor:
    """The token with the highest logit; the first of several.

    Logits are compared in the float32 of the product's sums. Rounded to bfloat16, as a product returns them, two may be
    equal, and then the first of both would be taken.

    Args:
        states: (N, H).
        weight: Weight of the output head, (V, H), of the same type.
        offsets: Added to the logits, (V,), in float32; None adds nothing.

    Returns:
        (N,).
    """
    return highest_with(_blocks(states.device), states, weight, offsets)


@most_probable.register_fake
def _(states: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor | None) -> torch.Tensor:
    return states.new_empty(states.shape[0], dtype=torch.long)  # not len(), which would make it a constant


def highest_with(
    blocks: Blocks, states: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor | None
) -> torch.Tensor:
    """``most_probable`` by blocks of any sizes."""
    (num_states, size), num_tokens = states.shape, len(weight)
    states, weight = states.contiguous(), weight.contiguous()
    state_blocks, token_blocks = triton.cdiv(num_states, blocks.states), triton.cdiv(num_tokens, blocks.tokens)
    parts = num_parts(state_blocks, token_blocks, blocks.resident * _multiprocessors(states.device))
    out = states.new_empty(num_states, parts, dtype=torch.long)
    with torch.cuda.device_of(states):
        # The programs that run at a time read the same part of the vocabulary, so it comes from memory once.
        _highest[(state_blocks, parts)](
            states, weight, offsets, out,
            num_states, num_tokens, size, parts, triton.cdiv(token_blocks, parts),
            HAS_OFFSETS=offsets is not None, EVEN=size % blocks.inner == 0,
            STATES=blocks.states, TOKENS=blocks.tokens, INNER=blocks.inner, FLATTEN=blocks.flatten,
            num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip
    return TOKEN_BITS - (out.amax(1) & TOKEN_BITS)


def num_parts(state_blocks: int, token_blocks: int, places: int) -> int:
    """Into how many parts to divide the vocabulary so that a device with so many places for programs is done first."""

    def time(parts: int) -> int:  # in blocks; a program takes about one more to start
        rounds, blocks_per_part = -(-state_blocks * parts // places), -(-token_blocks // parts)
        return rounds * (blocks_per_part + 1)

    return min(range(1, token_blocks + 1), key=time)


def _blocks(device: torch.device) -> Blocks:
    """The blocks that fit the shared memory of a device."""
    if device.type != "cuda":
        return BLOCKS
    fits = torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor > SHARED_MEMORY
    return BLOCKS if fits else SMALL_BLOCKS


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
