"""Attention that a model looks up by its name, as transformers registers it, and whether a model does so."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache, PreTrainedConfig, PreTrainedModel

PROBE = "ollm_rl_probe"
_probed: set[int] = set()  # addresses of the keys and values that ``_probe`` was called with


@contextmanager
def attention_named(name: str, config: PreTrainedConfig) -> Iterator[None]:
    """Within this context a model uses the registered attention of this name."""
    implementation = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = implementation


@torch.no_grad()
def hands_over_cache(backbone: PreTrainedModel) -> bool:
    """Whether a model with SDPA attention gives a registered one the cache's own keys and values, of every layer.

    Falcon, for one, says that it uses SDPA but calls attention of its own, whatever is registered. Others change keys
    after they are stored.
    """
    config = backbone.config.get_text_config()
    if config._attn_implementation != "sdpa":
        return False
    cache, token = DynamicCache(), torch.zeros(1, 1, dtype=torch.long, device=backbone.device)
    mask = torch.zeros(1, 1, 1, 1, dtype=backbone.dtype, device=backbone.device)
    inputs = {"input_ids": token, "position_ids": token, "attention_mask": mask}
    _probed.clear()
    with attention_named(PROBE, config):
        backbone.base_model(**inputs, past_key_values=cache, use_cache=True)
    return _probed == {states.data_ptr() for layer in cache.layers for states in (layer.keys, layer.values)}


def _probe(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    """SDPA attention that notes its keys and values."""
    _probed.update((key.data_ptr(), value.data_ptr()))
    return AttentionInterface()["sdpa"](module, query, key, value, *args, **kwargs)


AttentionInterface.register(PROBE, _probe)
