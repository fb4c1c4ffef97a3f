"""Attention of one new token a row that reads the cache once, however many heads share its keys.

transformers' own repeats keys and values for the heads that share them where there is a mask (until 5.23 for one token
too): three to six times the memory traffic that a step of decoding consists of.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from ollm_rl.decode.row_cache import Place
from ollm_rl.devices import HAS_TRITON

if HAS_TRITON:
    from ollm_rl.decode.row_kernel import attend_live

NAME = "ollm_rl_rows"
_step: dict[str, torch.Tensor] = {}  # of the step's ``Place``, each (B,); torch.compile reads no context variable


def row_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention, the heads that share keys taken for several queries of one head.

    Args:
        module: The model's attention layer; not read.
        query: (B, heads, 1, head size).
        key: (B, key heads, L, head size).
        value: (B, key heads, L, head size).
        attention_mask: Added to the scores, (B, 1, 1, L).
        scaling: Of the scores.
        **kwargs: What else the model passes; not read.

    Returns:
        (B, 1, heads, head size), and no weights.
    """
    rows, heads, _, size = query.shape
    if query.is_cuda and HAS_TRITON:
        scale = size**-0.5 if scaling is None else scaling
        return attend_live(query, key, value, attention_mask, **_step, scale=scale), None
    shared = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    mixed = F.scaled_dot_product_attention(shared, key, value, attn_mask=attention_mask, scale=scaling)
    return mixed.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register(NAME, row_attention)


def reads_live_part(backbone: PreTrainedModel) -> bool:
    """Whether a step's time depends on what the slots hold alone, however long the cache that it is given."""
    return HAS_TRITON and backbone.device.type == "cuda" and backbone.config._attn_implementation == "sdpa"


@contextmanager
def reading_once(config: PreTrainedConfig, place: Place) -> Iterator[None]:
    """Let a model whose attention is SDPA take ``row_attention`` for a step at this place.

    Another model is left as it is.
    """
    before = config._attn_implementation
    if before != "sdpa":
        yield
        return
    config._attn_implementation = NAME
    _step.update(positions=place.positions, sources=place.sources, shared=place.shared)
    try:
        yield
    finally:
        config._attn_implementation = before
        _step.clear()
