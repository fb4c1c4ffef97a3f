"""Attention of a decoding step on CUDA whose rotary embedding, cache write and sums are one kernel.

In transformers' own code these are some ten small kernels per layer, compiled three.

Letters: B rows, H hidden, D head size.
"""

from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel

from ollm_rl.decode.lean_model import ATTENTION, HALF_TOLERANCE, TOLERANCE, rotated
from ollm_rl.decode.prompt_attention import sees_all
from ollm_rl.decode.row_attention import reads_live_part
from ollm_rl.decode.row_cache import supported_layer_types
from ollm_rl.devices import HAS_TRITON

if HAS_TRITON:
    from ollm_rl.decode.fused_kernel import turn_and_attend

POSITION = 5  # at which keys are compared; at 0 nothing is turned


class FusedAttention:
    """What an attention module computes for one token per row, by one kernel between its products.

    Args:
        layer: A module with the parts ATTENTION, that turns all of a head and adds nothing to it.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        past_key_values: Cache,
        **kwargs: object,
    ) -> tuple[torch.Tensor, None]:
        """The replacement of the module's ``forward``.

        Args:
            hidden_states: (B, 1, H).
            position_embeddings: Cosines and sines of the positions, each (B, 1, D).
            past_key_values: A ``RowCache``, or one of its layers as a cache.
            **kwargs: Other arguments of the model; not used. No mask is needed.

        Returns:
            (B, 1, H), and None instead of attention weights.
        """
        attention = self.layer
        query, key, value = (part(hidden_states) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        cached: Any = past_key_values.layers[attention.layer_idx]
        layout = cached.layout
        summed = turn_and_attend(
            query,
            key,
            value,
            *position_embeddings,
            cached.states,
            layout.positions,
            layout.sources,
            layout.shared,
            attention.scaling,
        )
        return attention.o_proj(summed), None


class _Call(NamedTuple):
    """What a module was called with."""

    layer: Any
    arguments: dict[str, Any]


def fused_attention(backbone: PreTrainedModel, max_length: int) -> list[FusedAttention]:
    """All attention modules of a model for steps of at most ``max_length`` tokens; none if one of them is unusual.

    Usual are those that store the turned keys of one product and the values of another, as a pass over one token shows.
    """
    config: Any = backbone.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if not reads_live_part(backbone) or not sees_all(window, supported_layer_types(backbone), max_length):
        return []
    if getattr(config, "clip_qkv", None) is not None:  # of OLMo; few tokens may not reach it
        return []
    calls, cache = _calls(backbone)
    if [call.layer.layer_idx for call in calls] != list(range(len(cache.layers))):
        return []
    if not all(_is_usual(call, states) for call, states in zip(calls, cache.layers, strict=True)):
        return []
    return [FusedAttention(call.layer) for call in calls]


@torch.no_grad()
def _calls(backbone: PreTrainedModel) -> tuple[list[_Call], Cache]:
    """A pass over one token: the calls of attention modules with the parts ATTENTION, and the cache after it."""
    calls: list[_Call] = []
    hooks = [
        module.register_forward_pre_hook(
            lambda layer, args, kwargs: calls.append(_Call(layer, kwargs)), with_kwargs=True
        )
        for module in backbone.base_model.modules()
        if _has_parts(module)
    ]
    cache, token = DynamicCache(), torch.zeros(1, 1, dtype=torch.long, device=backbone.device)
    backbone.base_model(input_ids=token, position_ids=token + POSITION, past_key_values=cache, use_cache=True)
    for hook in hooks:
        hook.remove()
    return calls, cache


def _has_parts(module: nn.Module) -> bool:
    if {name for name, _ in module.named_children()} != ATTENTION:
        return False
    # A replaced forward belongs to other code. Some scale queries by their positions, which may begin to matter only
    # after thousands of tokens.
    if "forward" in vars(module) or "position_ids" in signature(type(module).forward).parameters:
        return False
    return hasattr(module, "scaling") and hasattr(module, "layer_idx")


@torch.no_grad()
def _is_usual(call: _Call, states: Any) -> bool:
    """Whether a module has stored what the kernel stores, in sizes that it takes."""
    hidden, angles = (call.arguments.get(name) for name in ("hidden_states", "position_embeddings"))
    size = states.keys.shape[-1]
    shapes = states.values.shape == states.keys.shape and size >= 16 and size & (size - 1) == 0
    if hidden is None or angles is None or not shapes or [angle.shape for angle in angles] != [(1, 1, size)] * 2:
        return False
    key, value = (product(hidden) for product in (call.layer.k_proj, call.layer.v_proj))
    if not key.numel() == value.numel() == states.keys.numel():
        return False
    key, value = key.view(states.keys.shape), value.view(states.keys.shape)
    tolerance = TOLERANCE if key.dtype == torch.float32 else HALF_TOLERANCE
    pairs = (rotated(key, *angles), states.keys), (value, states.values)
    return all((found - stored).norm() <= tolerance * stored.norm() for found, stored in pairs)
