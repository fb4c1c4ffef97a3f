"""What the kernel of a step's rotary embedding, cache write and attention computes, in torch."""

import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


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
    """Arguments and result are those of ``fused_kernel.turn_and_attend``."""
    (keys, values), rows, size = states, len(query), states.shape[-1]
    queries, new_keys, new_values = (part.view(rows, 1, -1, size).transpose(1, 2) for part in (query, key, value))
    queries, new_keys = apply_rotary_pos_emb(queries, new_keys, cosines, sines)
    index, places = torch.arange(rows, device=query.device), torch.arange(keys.shape[2], device=query.device)
    keys[index, :, positions], values[index, :, positions] = new_keys[:, :, 0], new_values[:, :, 0]
    read_rows = torch.where(places < shared[:, None], sources[:, None], index[:, None])
    read_keys, read_values = (part[read_rows, :, places].transpose(1, 2) for part in (keys, values))
    live = (places <= positions[:, None])[:, None, None]
    summed = F.scaled_dot_product_attention(
        queries, read_keys, read_values, attn_mask=live, scale=scale, enable_gqa=True
    )
    return summed.transpose(1, 2).reshape(rows, 1, -1)
