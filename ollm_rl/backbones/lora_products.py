"""Passes with gradient through a backbone with a LoRA, where a layer and its LoRA are one operation.

By itself peft computes a layer in seven operations and casts, each with one more in the backward pass. A model of 100M
parameters is computed faster than these are started.

Letters: B batch, T tokens, H hidden, M rows, r rank; ``...`` any leading dimensions.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from transformers import PreTrainedModel

from ollm_rl.backbones.fused_norms import fused_norms
from ollm_rl.backbones.plans import without_plans
from ollm_rl.backbones.replaced import Forward, replaced
from ollm_rl.errors import RunWarning, one_line


class _Product(torch.autograd.Function):
    """y = W x + c + s B A x (Hu et al. 2022, Sec. 4.1), with gradients of x, A and B; all of one precision."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        first: torch.Tensor,
        second: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """``inputs`` (..., in), W (out, in), c (out,), A (r, in), B (out, r) -> (..., out)."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        low = rows @ first.T
        outputs = nn.functional.linear(rows, weight, bias).addmm_(low, second.T, alpha=scale)
        ctx.save_for_backward(rows, weight, first, second, low)
        ctx.scale = scale
        return outputs.view(*inputs.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Gradients by argument; W and c are frozen."""
        rows, weight, first, second, low = ctx.saved_tensors
        of_rows = gradient.reshape(-1, gradient.shape[-1])
        of_low = of_rows @ second  # without s, which is a factor of each product below
        of_inputs = None
        if ctx.needs_input_grad[0]:
            of_inputs = (of_rows @ weight).addmm_(of_low, first, alpha=ctx.scale)
            of_inputs = of_inputs.view(*gradient.shape[:-1], -1)
        # With beta=0 the first argument is not read.
        of_first = torch.addmm(first, of_low.T, rows, beta=0, alpha=ctx.scale)
        of_second = torch.addmm(second, of_rows.T, low, beta=0, alpha=ctx.scale)
        return of_inputs, None, None, of_first, of_second, None


class _Cast(torch.autograd.Function):
    """Weights in another precision, all by one kernel, and their gradients back by another."""

    @staticmethod
    def forward(ctx: Any, precision: torch.dtype, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tensors of any shapes and one precision -> the same in ``precision``."""
        ctx.precision = weights[0].dtype
        return _cast(weights, precision)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """The gradients in the weights' own precision; zeros where there is none."""
        return None, *_cast(gradients, ctx.precision)


def _cast(tensors: Sequence[torch.Tensor], precision: torch.dtype) -> tuple[torch.Tensor, ...]:
    parts = torch.cat([tensor.flatten() for tensor in tensors]).to(precision).split([t.numel() for t in tensors])
    return tuple(part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))


class LoraProduct:
    """A linear layer with its LoRA as one operation.

    Args:
        layer: A layer of which `is_plain` holds.
    """

    def __init__(self, layer: Linear) -> None:
        (name,) = layer.active_adapters
        self.layer, self.base, self.name = layer, layer.base_layer, name
        self.first, self.second = layer.lora_A[name], layer.lora_B[name]
        self.scale = float(layer.scaling[name])

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which kernels run: layers of one kind are computed alike."""
        weight = self.base.weight
        return weight.shape, weight.dtype, weight.device, self.base.bias is None, self.first.weight.shape, self.scale

    def with_weights(self, first: torch.Tensor, second: torch.Tensor) -> Forward:
        """What the layer computes with A (r, in) and B (out, r), up to rounding: (..., in) -> (..., out)."""

        def forward(inputs: torch.Tensor) -> torch.Tensor:
            base = self.base
            if self.layer.disable_adapters:
                result: torch.Tensor = base(inputs)
            else:
                result = _Product.apply(inputs, base.weight, base.bias, first, second, self.scale)
            return result

        return forward

    @torch.inference_mode(False)
    @torch.enable_grad()
    def problem(self) -> str | None:
        """How outputs and gradients differ from the layer's own at random numbers; None if they agree."""
        weight, generator = self.base.weight, torch.Generator().manual_seed(0)  # the run's own numbers stay as they are

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(weight.device, weight.dtype)

        shapes = (5, weight.shape[1]), self.first.weight.shape, self.second.weight.shape
        inputs, first, second = (draw(*shape).requires_grad_() for shape in shapes)
        direction = draw(5, weight.shape[0])
        parameters = {f"lora_A.{self.name}.weight": first, f"lora_B.{self.name}.weight": second}
        pairs = []
        for outputs in (self.with_weights(first, second)(inputs), functional_call(self.layer, parameters, (inputs,))):
            pairs.append((outputs, *torch.autograd.grad(outputs, (inputs, first, second), direction)))
        for what, found, expected in zip(("output", "input", "A", "B"), *pairs, strict=True):
            if not (found - expected).norm() <= 0.02 * expected.norm():
                return f"the values or gradients of {what} are others than peft's"
        return None


def is_plain(layer: Any) -> bool:
    """Whether a layer is y = W x + c + s B A x with one LoRA and nothing else, so that `LoraProduct` can compute it."""
    if type(layer) is not Linear or type(layer.base_layer) is not nn.Linear or "forward" in vars(layer):
        return False  # another type of layer (quantized, of experts), or other code has replaced its forward
    active = layer.active_adapters
    if len(active) != 1 or active[0] not in layer.lora_A:
        return False
    variant = layer.lora_variant or layer.fan_in_fan_out or layer.merged or any(layer.lora_bias.values())
    frozen = not any(weight.requires_grad for weight in layer.base_layer.parameters())
    return frozen and not variant and type(layer.lora_dropout[active[0]]) is nn.Identity


def plain_products(backbone: PreTrainedModel) -> list[LoraProduct]:
    """The layers of which `is_plain` holds, if one of each kind is computed as peft computes it; else none."""
    products = [LoraProduct(layer) for layer in backbone.base_model.modules() if is_plain(layer)]
    return products if _agrees(products) else []


class LoraProducts:
    """A backbone with a LoRA, for passes with gradient.

    Layers of which `is_plain` holds are computed by `LoraProduct`, which is compared with peft's own computation here.
    All others are computed by peft.

    Args:
        backbone: Its LoRA's weights may be in another precision than its own.

    Attributes:
        weights: What has a gradient.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        self.backbone, self._precision = backbone, backbone.get_output_embeddings().weight.dtype
        # A layer that the model keeps in another precision has its inputs cast by peft.
        products = [
            LoraProduct(layer)
            for layer in backbone.base_model.modules()
            if is_plain(layer) and layer.base_layer.weight.dtype == self._precision
        ]
        self._products = products if _agrees(products) else []
        self._norms = fused_norms(backbone.base_model)
        # To find names in a model takes as long as a part of a pass, so it is done once.
        trained = {name: weight for name, weight in backbone.base_model.named_parameters() if weight.requires_grad}
        pairs = [weight for product in self._products for weight in (product.first.weight, product.second.weight)]
        own = set(map(id, pairs))
        self._others = {name: weight for name, weight in trained.items() if id(weight) not in own}
        self.weights: list[torch.Tensor] = [*pairs, *self._others.values()]

    def hidden_states(self, input_ids: torch.Tensor, weights: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """h_t as `last_hidden_states`, with gradient in the LoRA: token ids (B, T) -> (B, T, H).

        ``weights`` take the place of the LoRA's where they are given.

        The LoRA's products are in the backbone's precision; its weights and their gradients keep their own. By itself
        peft computes in the precision of the weights, and keeps the input of each of them again in float32.
        """
        decoder, weights = self.backbone.base_model, self.weights if weights is None else weights
        if any(weight.dtype != self._precision for weight in weights):
            weights = list(_Cast.apply(self._precision, *weights))
        count = 2 * len(self._products)
        pairs = zip(self._products, weights[:count:2], weights[1:count:2], strict=True)
        arguments = {"input_ids": input_ids, "use_cache": False}
        products = ((product.layer, product.with_weights(*pair)) for product, *pair in pairs)
        with replaced([*products, *self._norms]), without_plans():
            if self._others:
                others = dict(zip(self._others, weights[count:], strict=True))
                output = functional_call(decoder, others, kwargs=arguments)
            else:
                output = decoder(**arguments)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden


def _agrees(products: Sequence[LoraProduct]) -> bool:
    """Whether one layer of each kind is computed as peft computes it; if not, one line says so."""
    try:
        problems = (product.problem() for product in {product.kind: product for product in products}.values())
        problem = next(filter(None, problems), None)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever another version of peft or a kernel raises
        problem = f"{type(error).__name__}: {one_line(error)}"
    if problem is None:
        return True
    message = f"a layer and its LoRA cannot be one operation here ({problem}); peft computes them, more slowly"
    warnings.warn(message, RunWarning, stacklevel=3)
    return False
