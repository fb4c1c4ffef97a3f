"""Passes with gradient through a backbone with a LoRA, where layers that read one input are one operation with it.

By itself peft computes a layer in seven operations and casts, each with one more in the backward pass. A model of 100M
parameters is computed faster than these are started.

Letters: B batch, T tokens, H hidden, n layers, r rank; ``...`` any leading dimensions.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from transformers import PreTrainedModel

from ollm_rl.backbones.fused_norms import fused_norms
from ollm_rl.backbones.lora_weights import Cast, JointWeights
from ollm_rl.backbones.plans import without_plans
from ollm_rl.backbones.replaced import Forward, replaced
from ollm_rl.backbones.shared_inputs import concatenated, one_for_all, shared_inputs
from ollm_rl.errors import RunWarning, one_line


class _Product(torch.autograd.Function):
    """y = W x + c + s B A x (Hu et al. 2022, Sec. 4.1) of n layers that read one x, with gradients of x, A and B.

    W and c are those of all layers, A as well, and B is block-diagonal (`JointWeights`); all of one precision.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        first: torch.Tensor,
        second: torch.Tensor,
        scale: float,
        rows: Sequence[int],
    ) -> Any:
        """``inputs`` (..., in), W (out, in), c (out,), A (n r, in), B (out, n r) -> n of (..., rows of the layer)."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        low = flat @ first.T
        outputs = nn.functional.linear(flat, weight, bias).addmm_(low, second.T, alpha=scale)
        ctx.save_for_backward(flat, weight, first, second, low)
        ctx.scale = scale
        outputs = outputs.view(*inputs.shape[:-1], -1)
        if len(rows) == 1:
            return (outputs,)
        # Copies: a view of V that attention keeps would keep Q and K, models change outputs in place, and what reads
        # them is faster where they are contiguous.
        return tuple(part.clone() for part in outputs.split(rows, -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Gradients by argument; W and c are frozen, and those of B outside of its blocks are of no use."""
        flat, weight, first, second, low = ctx.saved_tensors
        gradient = gradients[0] if len(gradients) == 1 else torch.cat(gradients, -1)
        of_rows = gradient.reshape(-1, gradient.shape[-1])
        of_low = of_rows @ second  # without s, which is a factor of each product below
        of_inputs = None
        if ctx.needs_input_grad[0]:
            of_inputs = (of_rows @ weight).addmm_(of_low, first, alpha=ctx.scale)
            of_inputs = of_inputs.view(*gradient.shape[:-1], -1)
        # With beta=0 the first argument is not read.
        of_first = torch.addmm(first, of_low.T, flat, beta=0, alpha=ctx.scale)
        of_second = torch.addmm(second, of_rows.T, low, beta=0, alpha=ctx.scale)
        return of_inputs, None, None, of_first, of_second, None, None


class PlainLayer:
    """A linear layer with its LoRA.

    Args:
        layer: A layer of which `is_plain` holds.
    """

    def __init__(self, layer: Linear) -> None:
        (name,) = layer.active_adapters
        self.layer, self.base, self.name = layer, layer.base_layer, name
        self.first, self.second = layer.lora_A[name], layer.lora_B[name]
        self.scale = float(layer.scaling[name])

    @property
    def common(self) -> tuple[object, ...]:
        """What layers that are computed as one operation have in common."""
        weight, first = self.base.weight, self.first.weight
        return weight.dtype, weight.device, self.base.bias is None, first.shape, first.dtype, self.scale


class LoraProduct:
    """Linear layers that read one input, with their LoRAs, as one operation.

    Args:
        layers: In the order in which a pass calls them; one or more, `common` to which is what that property says.
    """

    def __init__(self, layers: Sequence[PlainLayer]) -> None:
        self.layers = layers
        self.rows = tuple(len(layer.base.weight) for layer in layers)
        self._frozen()  # before recorded graphs read the weights where they are

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which kernels run: products of one kind are computed alike."""
        return *self.layers[0].common, self.rows

    @property
    def is_off(self) -> bool:
        """Whether the LoRA of one of the layers is switched off."""
        return any(layer.layer.disable_adapters for layer in self.layers)

    def with_weights(self, first: torch.Tensor, second: torch.Tensor) -> list[tuple[nn.Module, Forward]]:
        """The layers, and what each computes, up to rounding, by A (n r, in), B (out, n r): (..., in) -> (..., out)."""
        weight, bias = self._frozen()
        scale, rows = self.layers[0].scale, self.rows

        def compute(inputs: torch.Tensor) -> Sequence[torch.Tensor]:
            outputs: Sequence[torch.Tensor] = _Product.apply(inputs, weight, bias, first, second, scale, rows)
            return outputs

        return one_for_all([layer.layer for layer in self.layers], compute)

    def _frozen(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """W (out, in) and c (out,) of all layers, whose own become views; again, if somebody has replaced one."""
        biases = [layer.base.bias for layer in self.layers if layer.base.bias is not None]
        weights = [layer.base.weight for layer in self.layers]
        return concatenated(weights), concatenated(biases) if biases else None

    @torch.inference_mode(False)
    @torch.enable_grad()
    def problem(self) -> str | None:
        """How outputs and gradients differ from the layers' own at random numbers; None if they agree."""
        weight = self.layers[0].base.weight
        generator = torch.Generator().manual_seed(0)  # the run's own numbers stay as they are

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(weight.device, weight.dtype)

        inputs = draw(5, weight.shape[1]).requires_grad_()
        firsts = [draw(*layer.first.weight.shape).requires_grad_() for layer in self.layers]
        seconds = [draw(*layer.second.weight.shape).requires_grad_() for layer in self.layers]
        directions = [draw(5, rows) for rows in self.rows]
        joint = self.with_weights(*JointWeights.apply(weight.dtype, self.rows, *firsts, *seconds))
        by_peft = [
            functional_call(
                layer.layer, {f"lora_A.{layer.name}.weight": first, f"lora_B.{layer.name}.weight": second}, (inputs,)
            )
            for layer, first, second in zip(self.layers, firsts, seconds, strict=True)
        ]
        pairs = []
        for outputs in ([forward(inputs) for _, forward in joint], by_peft):
            pairs.append((*outputs, *torch.autograd.grad(outputs, (inputs, *firsts, *seconds), directions)))
        number = len(self.layers)
        names = ["output"] * number + ["input"] + ["A"] * number + ["B"] * number
        for name, found, expected in zip(names, *pairs, strict=True):
            if not (found - expected).norm() <= 0.02 * expected.norm():
                return f"the values or gradients of {name} are others than peft's"
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


def plain_layers(backbone: PreTrainedModel) -> list[PlainLayer]:
    """The layers of which `is_plain` holds, if one of each kind is computed as peft computes it; else none."""
    layers = [PlainLayer(layer) for layer in backbone.base_model.modules() if is_plain(layer)]
    return layers if _agrees([LoraProduct([layer]) for layer in layers]) else []


class LoraProducts:
    """A backbone with a LoRA, for passes with gradient.

    Layers of which `is_plain` holds are computed by `LoraProduct`, which is compared with peft's own computation here.
    All others are computed by peft.

    Args:
        backbone: Its LoRA's weights may be in another precision than its own.
        joint: Whether layers that read one input are one operation. This starts fewer kernels, which counts on a GPU,
            and multiplies with the zeros beside the blocks of B, which counts on a CPU.
    """

    def __init__(self, backbone: PreTrainedModel, *, joint: bool) -> None:
        self._backbone, self._precision = backbone, backbone.get_output_embeddings().weight.dtype
        products = _products(backbone, self._precision, joint=joint)
        self._kinds: list[list[LoraProduct]] = []
        if _agrees(products):
            kinds = [product.kind for product in products]
            self._kinds = [[p for p in products if p.kind == kind] for kind in dict.fromkeys(kinds)]
        self._norms = fused_norms(backbone.base_model)
        # To find names in a model takes as long as a part of a pass, so it is done once.
        trained = {name: weight for name, weight in backbone.base_model.named_parameters() if weight.requires_grad}
        layers = [layer for products in self._kinds for product in products for layer in product.layers]
        own = {id(weight) for layer in layers for weight in (layer.first.weight, layer.second.weight)}
        self._others = {name: weight for name, weight in trained.items() if id(weight) not in own}

    def hidden_states(self, input_ids: torch.Tensor) -> torch.Tensor:
        """h_t as `last_hidden_states`, with gradient in the LoRA: token ids (B, T) -> (B, T, H).

        The LoRA's products are in the backbone's precision; its weights and their gradients keep their own. By itself
        peft computes in the precision of the weights, and keeps the input of each of them again in float32.
        """
        decoder = self._backbone.base_model
        arguments = {"input_ids": input_ids, "use_cache": False}
        with replaced([*self._forwards(), *self._norms]), without_plans():
            if self._others:
                output = functional_call(decoder, self._cast_others(), kwargs=arguments)
            else:
                output = decoder(**arguments)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _forwards(self) -> Iterator[tuple[nn.Module, Forward]]:
        for products in self._kinds:
            active = [product for product in products if not product.is_off]  # with its LoRA off peft adds nothing
            layers = [layer for product in active for layer in product.layers]
            weights = [layer.first.weight for layer in layers] + [layer.second.weight for layer in layers]
            if weights:
                joint = JointWeights.apply(self._precision, active[0].rows, *weights)
                for product, *pair in zip(active, joint[: len(active)], joint[len(active) :], strict=True):
                    yield from product.with_weights(*pair)

    def _cast_others(self) -> dict[str, torch.Tensor]:
        weights = list(self._others.values())
        if any(weight.dtype != self._precision for weight in weights):
            weights = list(Cast.apply(self._precision, *weights))
        return dict(zip(self._others, weights, strict=True))


def _products(backbone: PreTrainedModel, precision: torch.dtype, *, joint: bool) -> list[LoraProduct]:
    """The layers of which `is_plain` holds, those that read one input together if ``joint``."""
    # A layer that the model keeps in another precision has its inputs cast by peft.
    plain = {
        layer: PlainLayer(layer)
        for layer in backbone.base_model.modules()
        if is_plain(layer) and layer.base_layer.weight.dtype == precision
    }
    groups = shared_inputs(backbone, {layer: each.common for layer, each in plain.items()}) if joint else []
    grouped = {layer for group in groups for layer in group}
    groups += [[layer] for layer in plain if layer not in grouped]
    return [LoraProduct([plain[layer] for layer in group]) for group in groups]


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
