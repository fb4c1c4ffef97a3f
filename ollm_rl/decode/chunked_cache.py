"""Tokens of slots in the cache, also where keys and values are stored in chunks.

Letters: G tensors of a stack, S slots, B slots in use by a call, M chunks for which a slot has room, C tokens of a
chunk, D head size.
"""

import torch

from ollm_rl.decode.live_chunks import CHUNK


def tokens_of(stack: torch.Tensor, slots: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """A copy of the tokens of slots in [start, end), (G, B, heads, end - start, D).

    Args:
        stack: Keys or values, (G, S, heads, max_length, D); in chunks (G, S, heads, M, C, D).
        slots: Numbers of the slots, (B,).
        start: First token.
        end: End of the tokens.
    """
    if stack.dim() == 5:
        return stack[:, slots, :, start:end]
    first = start // CHUNK
    tokens = stack[:, slots, :, first : -(-end // CHUNK)].flatten(3, 4)
    return tokens[:, :, :, start - first * CHUNK : end - first * CHUNK]


def set_tokens(stack: torch.Tensor, slots: torch.Tensor, start: int, end: int, states: torch.Tensor) -> None:
    """Overwrite what ``tokens_of`` reads by ``states``, (G, B, heads, end - start, D)."""
    if stack.dim() == 5:
        stack[:, slots, :, start:end] = states
        return
    tokens = torch.arange(start, end)
    stack[:, slots[:, None], :, tokens // CHUNK, tokens % CHUNK] = states.permute(1, 3, 0, 2, 4)
