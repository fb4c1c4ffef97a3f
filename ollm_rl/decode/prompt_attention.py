"""Attention of compiled passes over whole prompts, without a mask.

While it is compiled, older releases of transformers (5.17; no longer 5.23) make a causal mask where none is needed.
With it attention has only kernels that compute the hidden half too, and heads that share keys get copies of them.

Letters: T tokens, H hidden.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from ollm_rl.decode.named_attention import attention_named, hands_over_cache

NAME = "ollm_rl_prompts"
# transformers' own attention, under a name for which it has no function that makes masks.
AttentionInterface.register(NAME, AttentionInterface()["sdpa"])
TOLERANCE, HALF_TOLERANCE = 1e-4, 0.05  # relative; a wrong mask makes far more


def is_causal(backbone: PreTrainedModel, window: int | None, layer_types: Sequence[str], max_length: int) -> bool:
    """Whether attention in a pass over prompts of at most ``max_length`` tokens needs no mask."""
    return sees_all(window, layer_types, max_length) and attends_causally(backbone)


def sees_all(window: int | None, layer_types: Sequence[str], max_length: int) -> bool:
    """Whether no window of the layers hides anything of ``max_length`` tokens."""
    return window is None or window > max_length or list(layer_types) == ["full_attention"]


def attends_causally(backbone: PreTrainedModel) -> bool:
    """Whether a few hidden states are the model's own if it makes no mask."""
    config = backbone.config.get_text_config()
    if not hands_over_cache(backbone):
        return False
    tokens = torch.arange(1, 9, device=backbone.device)[None] % backbone.get_input_embeddings().weight.shape[0]
    expected = _hidden_states(backbone, tokens)
    with use_causal_attention(config):
        found = _hidden_states(backbone, tokens)
    tolerance = TOLERANCE if backbone.dtype == torch.float32 else HALF_TOLERANCE
    return bool((found - expected).norm() <= tolerance * expected.norm())


def use_causal_attention(config: PreTrainedConfig) -> AbstractContextManager[None]:
    """Within this context a model with SDPA attention makes no mask, and its tokens attend to themselves and the past.

    The cache must be empty.
    """
    return attention_named(NAME, config)


@torch.no_grad()
def _hidden_states(backbone: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Token ids (1, T) -> (T, H), in float32."""
    hidden: torch.Tensor = backbone.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden[0].float()
