"""The most probable token at hidden states as a Triton kernel: product and maximum in one, so no logits are written.

The logits, hidden states by tokens, are divided into tiles. As many programs as the device runs at a time take tiles in
turn, multiply them, and keep for each hidden state the highest logit and its token.

Letters: N hidden states, H hidden, V vocabulary.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import library
from triton.tools.tensor_descriptor import TensorDescriptor


class Blocks(NamedTuple):
    """Sizes of a tile, and how it is multiplied."""

    states: int = 128
    tokens: int = 256
    inner: int = 64  # numbers of a hidden state per iteration of the loop
    warps: int = 8
    stages: int = 3  # iterations in flight
    resident: int = 1  # programs that a multiprocessor runs at a time
    flatten: bool = True  # whether the loops over tiles and over inner numbers are pipelined as one


# Large tiles read less from the device's cache. With two resident programs one multiplies while the other compares.
BLOCKS, SMALL_BLOCKS = Blocks(), Blocks(tokens=128, warps=4, resident=2, flatten=False)
SHARED_MEMORY = 3 * (128 + 256) * 64 * 2  # bytes that BLOCKS need; GPUs other than A100, H100 and B200 have less
TOKEN_BITS = 0x7FFFFFFF  # the lower half of a result; counted down from here, so that of equal logits the first wins
LOWEST = -(2**63)


@triton.jit
def _highest(  # type: ignore[no-untyped-def]
    states, weight, offsets, out, num_states, num_tokens, size, state_blocks, tiles,
    HAS_OFFSETS: tl.constexpr, STATES: tl.constexpr, TOKENS: tl.constexpr, INNER: tl.constexpr,
    FLATTEN: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, TOKENS)
    # Tiles that are multiplied at a time have the same tokens, so a part of the weight comes from memory once.
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=FLATTEN):
        state, token = tile % state_blocks * STATES, tile // state_blocks * TOKENS
        logits = tl.zeros([STATES, TOKENS], tl.float32)
        for start in range(0, size, INNER):  # beyond the ends zeros are read
            logits = tl.dot(states.load([state, start]), weight.load([token, start]).T, logits)
        tokens = token + columns
        if HAS_OFFSETS:
            logits += tl.load(offsets + tl.minimum(tokens, num_tokens - 1))[None, :]
        logits = tl.where((tokens < num_tokens)[None, :], logits, float("-inf"))
        highest, place = tl.max(logits, 1, return_indices=True)
        # Integers in the order of the logits, so that their maximum finds the token too, in any order of the tiles.
        bits = (highest + 0.0).to(tl.int32, bitcast=True)  # + 0.0 makes -0.0 equal to 0.0
        order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
        best_token = tl.minimum(token + place, num_tokens - 1)
        rows = state + tl.arange(0, STATES)
        result = (order << 32) | (0x7FFFFFFF - best_token).to(tl.int64)
        tl.atomic_max(out + rows, result, mask=rows < num_states, sem="relaxed")


# An operator of its own, because a compiled caller would specialise on N, from which the number of tiles follows.
@library.custom_op("ollm_rl::most_probable", mutates_args=())
def most_probable(states: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor | None) -> torch.Tensor:
    """The token with the highest logit; the first of several.

    Logits are compared in the float32 of the product's sums. Rounded to bfloat16, as a product returns them, two may be
    equal, and then the first of both would be taken.

    Args:
        states: (N, H).
        weight: Weight of the output head, (V, H), of the same type. Rows take a multiple of 16 bytes.
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
    if not num_states:  # of which Triton makes no descriptor
        return states.new_empty(0, dtype=torch.long)
    state_blocks = triton.cdiv(num_states, blocks.states)
    tiles = state_blocks * triton.cdiv(num_tokens, blocks.tokens)
    programs = blocks.resident * _multiprocessors(states.device)
    out = torch.full((num_states,), LOWEST, dtype=torch.long, device=states.device)
    with torch.cuda.device_of(states):
        _highest[(min(programs, tiles),)](
            TensorDescriptor.from_tensor(states.contiguous(), [blocks.states, blocks.inner]),
            TensorDescriptor.from_tensor(weight.contiguous(), [blocks.tokens, blocks.inner]),
            offsets, out, num_states, num_tokens, size, state_blocks, tiles,
            HAS_OFFSETS=offsets is not None, STATES=blocks.states, TOKENS=blocks.tokens, INNER=blocks.inner,
            FLATTEN=blocks.flatten, PROGRAMS=programs, num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip
    return TOKEN_BITS - (out & TOKEN_BITS)


def _blocks(device: torch.device) -> Blocks:
    """The blocks that fit the shared memory of a device."""
    if device.type != "cuda":
        return BLOCKS
    fits = torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor > SHARED_MEMORY
    return BLOCKS if fits else SMALL_BLOCKS


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
