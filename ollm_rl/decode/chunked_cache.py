"""Tokens of slots in the cache, also where keys and values are stored in chunks.

Letters: G tensors of a stack, S slots, B slots in use by a call, M chunks for which a slot has room, C tokens of a
chunk, D head size.
"""

import torch

from ollm_rl.decode.live_chunks import CHUNK


def tokens_of(stack: torch.Tensor, slots: torch.Tensor, width: int) -> torch.Tensor:
    """A copy of the first tokens of slots, (G, B, heads, width, D).

    Args:
        stack: Keys or values, (G, S, heads, max_length, D); in chunks (G, S, heads, M, C, D).
        slots: Numbers of the slots, (B,).
        width: Number of tokens.
    """
    if stack.dim() == 5:
        return stack[:, slots, :, :width]
    return stack[:, slots, :, : -(-width // CHUNK)].flatten(3, 4)[:, :, :, :width]


def set_tokens(stack: torch.Tensor, slots: torch.Tensor, width: int, states: torch.Tensor) -> None:
    """Overwrite what ``tokens_of`` reads by ``states``, (G, B, heads, width, D)."""
    if stack.dim() == 5:
        stack[:, slots, :, :width] = states
        return
    stack[index_of(stack, slots[:, None], torch.arange(width))] = states.permute(1, 3, 0, 2, 4)


def index_of(stack: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> tuple[slice | torch.Tensor, ...]:
    """The index of single tokens, by two tensors of one shape (...): what it reads is (..., G, heads, D)."""
    if stack.dim() == 5:
        return slice(None), slots, slice(None), positions
    return slice(None), slots, slice(None), positions // CHUNK, positions % CHUNK
