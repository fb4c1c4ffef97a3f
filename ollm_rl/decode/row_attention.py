"""Attention of one new token per row that reads the cache once, even if several heads share its keys.

With a mask, transformers' own attention repeats keys and values for the heads that share them (until 5.23 for one token
too). A decoding step consists mainly of memory traffic, and this makes it three to six times as large.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from ollm_rl.decode.named_attention import attention_named, hands_over_cache
from ollm_rl.decode.row_cache import StepLayout
from ollm_rl.devices import HAS_TRITON

if HAS_TRITON:
    from ollm_rl.decode.row_kernel import attend_live

NAME = "ollm_rl_rows"
# What attention needs of the ``StepLayout``. A global, because torch.compile does not support context variables.
_step: dict[str, Any] = {}


def row_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention; heads that share keys are treated as several queries of one head.

    Args:
        module: The model's attention layer; not used.
        query: (B, heads, 1, head size).
        key: (B, key heads, L, head size).
        value: (B, key heads, L, head size).
        attention_mask: Mask added to the scores, (B, 1, 1, L).
        scaling: Factor of the scores.
        **kwargs: Other arguments of the model; not used.

    Returns:
        (B, 1, heads, head size), and None instead of attention weights.
    """
    rows, heads, _, size = query.shape
    scale = size**-0.5 if scaling is None else scaling
    chunks = _step.get("chunks")
    if chunks is not None:
        return chunks.attend(query, key, value, attention_mask, scale), None
    if query.is_cuda and HAS_TRITON:
        return attend_live(query, key, value, attention_mask, **_step, scale=scale), None
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register(NAME, row_attention)


def reads_live_part(backbone: PreTrainedModel) -> bool:
    """Whether a step's time depends only on the contents of the slots, not on the length of the cache."""
    return HAS_TRITON and backbone.device.type == "cuda" and hands_over_cache(backbone)


@contextmanager
def use_row_attention(config: PreTrainedConfig, layout: StepLayout) -> Iterator[None]:
    """Within this context a model with SDPA attention uses ``row_attention`` for a step with this layout.

    Other models are not changed.
    """
    if config._attn_implementation != "sdpa":
        yield
        return
    if layout.chunks is None:
        _step.update(positions=layout.positions, sources=layout.sources, shared=layout.shared)
    else:
        _step["chunks"] = layout.chunks
    try:
        with attention_named(NAME, config):
            yield
    finally:
        _step.clear()
