"""A step of a decoder of the usual shape in few operations.

A small model's step spends as much time on starting its operations, on a CPU some four hundred, as on its numbers. So
layers that read one tensor are one product, a product adds its residual, and rows have no dimension for their token.

Letters: B rows, H hidden, D head size, F features of an MLP; ``...`` any leading dimensions.
"""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from ollm_rl.backbones.fused_norms import FusedNorm
from ollm_rl.backbones.lora_products import LoraProduct, plain_products
from ollm_rl.backbones.replaced import Forward, is_untouched
from ollm_rl.decode.lean_products import Product
from ollm_rl.decode.row_cache import RowCache, RowLayer, StepLayout
from ollm_rl.devices import HAS_TRITON

if HAS_TRITON:
    from ollm_rl.decode.fused_kernel import turn_and_attend
    from ollm_rl.decode.layer_kernels import normed, silu_times

# The parts of a model. One with others, such as norms of queries or two more norms per layer, keeps its own code.
MODEL = {"embed_tokens", "layers", "norm", "rotary_emb"}
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION, MLP = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj", "act_fn"}
SILU = nn.SiLU, type(ACT2FN["silu"])
TOKENS = 4  # on which layers are compared
TOLERANCE, HALF_TOLERANCE = 1e-4, 0.02  # relative error of a product by itself
HALF_LAYER_TOLERANCE = 0.05  # of what a layer adds; SmolLM2-135M's differ by 0.006 to 0.0125 in bfloat16

# Queries, keys and values of a layer's rows side by side, (B, heads * D + 2 * key heads * D) -> what attention sums,
# (B, heads * D).
Attend = Callable[[torch.Tensor], torch.Tensor]


class LeanLayer:
    """A layer of attention with rotary positions and an MLP with a gate, each behind a norm (Touvron et al. 2023).

    Args:
        layer: A layer with the parts LAYER, ATTENTION and MLP.
        loras: As for `Product`.

    Attributes:
        size: D.
        scale: Factor of the scores.
        widths: Numbers of the queries, keys and values of a row.
        products: The layer's.
    """

    def __init__(self, layer: Any, loras: Mapping[nn.Module, LoraProduct]) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.size, self.scale, self._activation = attention.head_dim, attention.scaling, mlp.act_fn
        heads, gate_and_up = (attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)
        self.widths = [part.out_features for part in heads]
        self._norms = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        inputs = heads, (attention.o_proj,), gate_and_up, (mlp.down_proj,)
        self.products = [Product(layers, loras) for layers in inputs]

    def __call__(self, hidden: torch.Tensor, attend: Attend) -> None:
        """Change the states of one token per row, (B, H), to what the layer makes of them."""
        heads, output, gate_and_up, down = self.products
        output.add_to(hidden, attend(heads(self._norms[0](hidden))))
        down.add_to(hidden, self._gated(gate_and_up(self._norms[1](hidden))))

    def _gated(self, gate_and_up: torch.Tensor) -> torch.Tensor:
        """(B, 2 F) -> (B, F)."""
        if gate_and_up.is_cuda and HAS_TRITON and type(self._activation) in SILU:
            return silu_times(gate_and_up)
        gate, up = gate_and_up.chunk(2, -1)
        product: torch.Tensor = self._activation(gate).mul_(up)
        return product


class LeanModel:
    """A model of `LeanLayer` without its output head.

    Args:
        model: A model with the parts MODEL.
        loras: As for `Product`.
    """

    def __init__(self, model: Any, loras: Mapping[nn.Module, LoraProduct]) -> None:
        self._model, self._embedding, self._rotary = model, model.embed_tokens, model.rotary_emb
        self._layers = [LeanLayer(layer, loras) for layer in model.layers]
        self._norm = _norm(model.norm)
        copies = [pair for layer in self._layers for product in layer.products for pair in product.copies]
        self._copies, self._weights = [copy for copy, _ in copies], [weight for _, weight in copies]

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the copies of LoRAs up to date, before a step."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._weights)

    @torch.inference_mode()
    def __call__(
        self, tokens: torch.Tensor, layout: StepLayout, mask: torch.Tensor | None, cache: RowCache
    ) -> torch.Tensor:
        """One token per row, (B,) -> (B, H).

        Args:
            tokens: (B,).
            layout: Where the step writes and reads.
            mask: Mask added to the scores, (B, 1, 1, L), if the cache stores keys in chunks; else one kernel does all
                between the products, which needs none.
            cache: Keys and values. If in chunks, no heads share them.
        """
        hidden = self._embedding(tokens)
        angles = self._rotary(hidden, layout.positions[:, None])
        attend = _by_kernel if mask is None else partial(_in_chunks, mask)
        for layer, states in zip(self._layers, cache.layers, strict=True):
            layer(hidden, partial(attend, layer, angles, states))
        return self._norm(hidden)

    @torch.inference_mode()
    def agrees(self) -> bool:
        """Whether each part computes for a few tokens, in half precision too, what the model's own does.

        Whole steps differ there by so much that a factor near 1 would not show. Each layer gets random states, because
        in a trained model some have numbers so large that their rounding would hide what a layer changes.
        """
        weight, generator = self._embedding.weight, torch.Generator().manual_seed(0)
        shape = 1, TOKENS, weight.shape[1]
        given = iter([torch.randn(shape, generator=generator).to(weight) for _ in self._layers])
        seen: list[torch.Tensor] = []  # what the first layer would have got, and per layer what it got and made of it

        def give(_: nn.Module, args: Any) -> Any:
            if not seen:
                seen.append(args[0])
            seen.append(next(given))
            return seen[-1].clone(), *args[1:]

        layers = self._model.layers
        hooks = [layer.register_forward_pre_hook(give) for layer in layers]
        hooks += [layer.register_forward_hook(lambda _, args, output: seen.append(output.clone())) for layer in layers]
        try:
            # From the middle of the vocabulary: the embedding of padding, often token 0, is zero.
            tokens = torch.arange(TOKENS, device=weight.device)[None] + len(weight) // 2
            last = self._model(input_ids=tokens, use_cache=False).last_hidden_state[0]
        finally:
            for hook in hooks:
                hook.remove()
        first, *states = seen
        angles = self._rotary(first, torch.arange(TOKENS, device=weight.device)[None])
        for layer, before, after in zip(self._layers, states[::2], states[1::2], strict=True):
            hidden = before[0].clone()
            layer(hidden, partial(_among_themselves, layer, angles))
            if not _close(hidden - before[0], after[0] - before[0]):
                return False
        return torch.equal(self._embedding(tokens), first) and _close(self._norm(states[-1][0]), last)


def rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Queries or keys at their positions (Su et al. 2021): (..., D), with tables that broadcast to it."""
    half = states.shape[-1] // 2
    result = states * cos
    result[..., :half].addcmul_(states[..., half:], sin[..., :half], value=-1)
    result[..., half:].addcmul_(states[..., :half], sin[..., half:])
    return result


def lean_model(backbone: PreTrainedModel) -> LeanModel | None:
    """The model as a `LeanModel`, if it has its parts and no code of others; it is to be tried."""
    model: Any = backbone.base_model
    usual = _has(model, MODEL) and all(map(_is_usual, model.layers)) and all(map(is_untouched, model.modules()))
    return LeanModel(model, {product.layer: product for product in plain_products(backbone)}) if usual else None


def _norm(layer: Any) -> Forward:
    """What an RMS norm computes for rows, (B, H) -> (B, H)."""
    if HAS_TRITON and layer.weight.is_cuda:
        return lambda inputs: normed(inputs, layer.weight, layer.variance_epsilon)
    return FusedNorm(layer).forward


def _by_kernel(
    layer: LeanLayer, angles: tuple[torch.Tensor, torch.Tensor], states: RowLayer, heads: torch.Tensor
) -> torch.Tensor:
    query, key, value = heads[:, None].split(layer.widths, -1)
    both, layout = states.states, states.layout
    assert both is not None
    where = layout.positions, layout.sources, layout.shared
    return turn_and_attend(query, key, value, *angles, both, *where, layer.scale)[:, 0]


def _in_chunks(
    mask: torch.Tensor,
    layer: LeanLayer,
    angles: tuple[torch.Tensor, torch.Tensor],
    states: RowLayer,
    heads: torch.Tensor,
) -> torch.Tensor:
    chunks, parts = states.layout.chunks, heads.view(len(heads), 3, -1, layer.size)
    assert chunks is not None
    query, key = rotated(parts[:, :2], *(table[:, None] for table in angles))[..., None, :].unbind(1)
    keys, values = states.update(key, parts[:, 2, :, None])
    return chunks.attend(query, keys, values, mask, layer.scale).view(len(heads), -1)


def _among_themselves(layer: LeanLayer, angles: tuple[torch.Tensor, torch.Tensor], heads: torch.Tensor) -> torch.Tensor:
    """Attention of rows that are the tokens of one text."""
    parts = (part.unflatten(-1, (-1, layer.size)).transpose(0, 1)[None] for part in heads.split(layer.widths, -1))
    query, key, value = parts
    query, key = (rotated(part, *(table[:, None] for table in angles)) for part in (query, key))
    summed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=layer.scale, enable_gqa=True)
    return summed[0].transpose(0, 1).flatten(1)


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = TOLERANCE if expected.dtype == torch.float32 else HALF_LAYER_TOLERANCE
    return bool((found - expected).float().norm() <= tolerance * expected.float().norm())


def _is_usual(layer: Any) -> bool:
    parts = _has(layer, LAYER) and _has(layer.self_attn, ATTENTION) and _has(layer.mlp, MLP)
    # Some scale queries by their positions, which may begin to matter only after thousands of tokens.
    return parts and "position_ids" not in signature(type(layer.self_attn).forward).parameters


def _has(module: nn.Module, names: set[str]) -> bool:
    return {name for name, _ in module.named_children()} == names
