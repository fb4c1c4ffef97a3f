"""A step of a decoder of the usual shape on a CPU, in six tenths of the operations of transformers' own.

There a small model's step spends as much time on starting some four hundred operations, and in Python, as on its
numbers. So layers that read one tensor are one product, a product adds its residual, and rows have no dimension for
their one token.

Letters: B rows, H hidden, D head size; ``...`` any leading dimensions.
"""

from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ollm_rl.backbones.fused_norms import FusedNorm
from ollm_rl.decode.joint_products import concatenated
from ollm_rl.decode.row_cache import RowCache, RowLayer, StepLayout

# The parts of a model. One with others, such as norms of queries or two more norms per layer, keeps its own code.
MODEL = {"embed_tokens", "layers", "norm", "rotary_emb"}
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION, MLP = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj", "act_fn"}


class Product:
    """Linear layers with the same input, as one matrix product if they are plain and frozen.

    Args:
        *layers: The layers. Those with a LoRA, for one, compute their own products.
    """

    def __init__(self, *layers: Any) -> None:
        self._layers = layers
        self._weight = self._bias = None
        plain = all(type(layer) is nn.Linear and not layer.weight.requires_grad for layer in layers)
        if plain and len({layer.bias is None for layer in layers}) == 1:
            self._weight = concatenated([layer.weight for layer in layers])
            self._bias = None if layers[0].bias is None else concatenated([layer.bias for layer in layers])

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, inputs) -> (B, outputs of all layers)."""
        if self._weight is None:
            return torch.cat([layer(inputs) for layer in self._layers], -1)
        return F.linear(inputs, self._weight, self._bias)

    def added_to(self, residual: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """The sum of a residual, (B, outputs), and the product."""
        if self._weight is None or self._bias is not None:
            return residual + self(inputs)
        return torch.addmm(residual, inputs, self._weight.T)


class LeanLayer:
    """A layer of attention with rotary positions and an MLP with a gate, each behind a norm (Touvron et al. 2023).

    Args:
        layer: A layer with the parts LAYER, ATTENTION and MLP.
    """

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._size, self._scale, self._activation = attention.head_dim, attention.scaling, mlp.act_fn
        self._norms = FusedNorm(layer.input_layernorm).forward, FusedNorm(layer.post_attention_layernorm).forward
        self._heads = Product(attention.q_proj, attention.k_proj, attention.v_proj)
        self._output = Product(attention.o_proj)
        self._gate_and_up, self._down = Product(mlp.gate_proj, mlp.up_proj), Product(mlp.down_proj)

    def __call__(
        self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor, states: RowLayer
    ) -> torch.Tensor:
        """One token per row, (B, H) -> (B, H).

        Args:
            hidden: Output of the layer before.
            cos: Table of the rows' positions, (B, 1, 1, D).
            sin: As ``cos``.
            mask: Mask added to the scores, (B, 1, 1, L).
            states: The layer's part of the cache.
        """
        rows, chunks = len(hidden), states.layout.chunks
        assert chunks is not None
        heads = self._heads(self._norms[0](hidden)).view(rows, 3, -1, self._size)
        query, key = rotated(heads[:, :2], cos, sin)[..., None, :].unbind(1)
        keys, values = states.update(key, heads[:, 2, :, None])
        summed = chunks.attend(query, keys, values, mask, self._scale)
        hidden = self._output.added_to(hidden, summed.view(rows, -1))
        gate, up = self._gate_and_up(self._norms[1](hidden)).chunk(2, -1)
        return self._down.added_to(hidden, self._activation(gate).mul_(up))


class LeanModel:
    """A model of `LeanLayer` without its output head, in steps of which the cache stores keys in chunks.

    Args:
        model: A model with the parts MODEL, no heads of which share keys.
    """

    def __init__(self, model: Any) -> None:
        self._embedding, self._rotary = model.embed_tokens, model.rotary_emb
        self._layers = [LeanLayer(layer) for layer in model.layers]
        self._norm = FusedNorm(model.norm).forward

    @torch.inference_mode()
    def __call__(self, tokens: torch.Tensor, layout: StepLayout, mask: torch.Tensor, cache: RowCache) -> torch.Tensor:
        """One token per row, (B,) -> (B, H)."""
        hidden = self._embedding(tokens)
        cos, sin = (table[:, None] for table in self._rotary(hidden, layout.positions[:, None]))
        for layer, states in zip(self._layers, cache.layers, strict=True):
            hidden = layer(hidden, cos, sin, mask, states)
        return self._norm(hidden)


def rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Queries or keys at their positions (Su et al. 2021): (..., D), with tables that broadcast to it."""
    half = states.shape[-1] // 2
    result = states * cos
    result[..., :half].addcmul_(states[..., half:], sin[..., :half], value=-1)
    result[..., half:].addcmul_(states[..., :half], sin[..., half:])
    return result


def lean_model(backbone: PreTrainedModel) -> LeanModel | None:
    """The model as a `LeanModel` if it has its parts; whether that computes the same is to be tried."""
    model: Any = backbone.base_model
    return LeanModel(model) if _has(model, MODEL) and all(map(_is_usual, model.layers)) else None


def _is_usual(layer: Any) -> bool:
    parts = _has(layer, LAYER) and _has(layer.self_attn, ATTENTION) and _has(layer.mlp, MLP)
    # Some scale queries by their positions, which may begin to matter only after thousands of tokens.
    return parts and "position_ids" not in signature(type(layer.self_attn).forward).parameters


def _has(module: nn.Module, names: set[str]) -> bool:
    return {name for name, _ in module.named_children()} == names
