"""A layer and its LoRA as one operation: as peft computes them, with the same gradients, and only where it can."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from ollm_rl.backbones import lora_products
from ollm_rl.backbones.lora import add_lora, without_lora
from ollm_rl.backbones.lora_products import LoraProducts, is_plain, plain_products
from ollm_rl.backbones.output_head import last_hidden_states
from ollm_rl.errors import RunWarning
from tests.backbones.test_lora import gpt_oss, lora_weights, shake
from tests.decode.test_engine import random_ids
from tests.tiny_models import tiny_model

LINEAR_LAYERS = {"qwen2": 14, "gpt2": 0, "gpt_oss": 8}  # two blocks; GPT-2 has Conv1D, GPT-OSS experts and routers
IDS = torch.tensor(random_ids(12, 12))


def adapted(family: str) -> Any:
    """A frozen backbone with a LoRA of random weights."""
    backbone = gpt_oss() if family == "gpt_oss" else tiny_model(family)
    backbone.requires_grad_(False)
    add_lora(backbone, 2)
    shake(backbone)
    return backbone


def gradients(backbone: Any, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = lora_weights(backbone)
    found = torch.autograd.grad(hidden.float().square().sum(), list(weights.values()))
    return dict(zip(weights, found, strict=True))


def whole(found: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradient.float().flatten() for gradient in found.values()])


def operations(hidden: torch.Tensor) -> Counter[str]:
    """Names of what autograd goes back through."""
    waiting, seen = [hidden.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [other for other, _ in node.next_functions]
    return Counter(node.name() for node in seen)


@pytest.mark.parametrize("family", LINEAR_LAYERS)
def test_hidden_states_and_gradients_are_those_of_peft(family: str) -> None:
    backbone = adapted(family)
    expected, hidden = last_hidden_states(backbone, IDS), LoraProducts(backbone).hidden_states(IDS)
    assert operations(hidden)["_ProductBackward"] == LINEAR_LAYERS[family]
    torch.testing.assert_close(hidden, expected)
    found, of_peft = gradients(backbone, hidden), gradients(backbone, expected)
    for name, gradient in of_peft.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


def test_in_bfloat16_gradients_are_in_float32_and_no_less_exact_than_by_peft() -> None:
    exact = adapted("qwen2")
    half = copy.deepcopy(exact).to(torch.bfloat16)
    for weight, rounded in zip(exact.parameters(), half.parameters(), strict=True):
        weight.data = rounded.data.float()
    by_peft = whole(gradients(half, last_hidden_states(half, IDS)))
    for weight in lora_weights(half).values():
        weight.data = weight.data.float()
    hidden = LoraProducts(half).hidden_states(IDS)
    found = gradients(half, hidden)
    assert hidden.dtype is torch.bfloat16
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    expected = whole(gradients(exact, last_hidden_states(exact, IDS)))
    assert (whole(found) - expected).norm() < 1.1 * (by_peft - expected).norm() < 0.2 * expected.norm()


def test_one_operation_is_the_equation_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"inputs": (2, 3, 5), "weight": (4, 5), "bias": (4,), "first": (2, 5), "second": (4, 2)}
    tensors = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    for name in ("inputs", "first", "second"):
        tensors[name].requires_grad_()
    assert torch.autograd.gradcheck(lambda *some: lora_products._Product.apply(*some, 3.0), tuple(tensors.values()))
    matrix = tensors["weight"] + 3 * tensors["second"] @ tensors["first"]
    found = lora_products._Product.apply(*tensors.values(), 3.0)
    torch.testing.assert_close(found, tensors["inputs"] @ matrix.T + tensors["bias"])


def test_a_lora_that_is_switched_off_changes_nothing_and_layers_are_left_as_they_were() -> None:
    backbone = adapted("qwen2")
    products = LoraProducts(backbone)
    with torch.no_grad(), without_lora(backbone):
        torch.testing.assert_close(products.hidden_states(IDS), last_hidden_states(tiny_model("qwen2"), IDS))
    assert not any("forward" in vars(module) for module in backbone.modules())


def test_a_copy_computes_with_its_own_weights() -> None:
    backbone = adapted("qwen2")
    products = LoraProducts(backbone)
    copied, of_copy = copy.deepcopy((backbone, products))
    with torch.no_grad():
        for weight in lora_weights(backbone).values():
            weight.zero_()
        torch.testing.assert_close(of_copy.hidden_states(IDS), last_hidden_states(copied, IDS))


def test_where_it_computes_other_gradients_peft_is_used_and_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        of_inputs, *frozen, of_first, of_second, scale = correct(ctx, gradient)
        return of_inputs, *frozen, 1.1 * of_first, of_second, scale

    correct = lora_products._Product.backward
    monkeypatch.setattr(lora_products._Product, "backward", staticmethod(backward))
    backbone = adapted("qwen2")
    with pytest.warns(RunWarning, match=r"cannot be one operation here \(the values or gradients of A are others"):
        products = LoraProducts(backbone)
    hidden = products.hidden_states(IDS)
    assert operations(hidden)["_ProductBackward"] == 0
    torch.testing.assert_close(hidden, last_hidden_states(backbone, IDS))


@pytest.mark.parametrize(
    "settings", [{}, {"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}, {"use_rslora": True}]
)
def test_only_a_lora_without_anything_else_is_plain(settings: dict[str, Any]) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 3)).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"], **settings), model)
    assert is_plain(model[0]) is (settings in ({}, {"use_rslora": True}))
    model[0].base_layer.weight.requires_grad_(True)
    assert not is_plain(model[0]), "its weight would get no gradient"


def test_the_comparison_draws_none_of_the_runs_random_numbers() -> None:
    backbone = adapted("qwen2")
    before = torch.get_rng_state()
    LoraProducts(backbone)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_in_another_precision_than_the_model_is_left_to_peft() -> None:
    backbone = adapted("qwen2")
    layer = backbone.base_model.layers[0].self_attn.o_proj
    layer.base_layer.double()
    layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0].double(),))
    layer.register_forward_hook(lambda layer, inputs, outputs: outputs.float())
    hidden = LoraProducts(backbone).hidden_states(IDS)
    assert operations(hidden)["_ProductBackward"] == 13
    torch.testing.assert_close(hidden, last_hidden_states(backbone, IDS))


def test_layers_are_compared_where_autograd_is_off() -> None:
    backbone = adapted("qwen2")
    with torch.inference_mode():
        assert len(plain_products(backbone)) == LINEAR_LAYERS["qwen2"]
