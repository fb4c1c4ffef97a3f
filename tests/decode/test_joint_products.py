"""Layers that read one tensor, computed as one product: which layers are joined, and that no output changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.decode.joint_products import JointProduct, joined, joint_products
from tests.tiny_models import FAMILIES, tiny_model

IDS = torch.arange(1, 13).view(2, 6)


def names(model: nn.Module, products: list[JointProduct]) -> list[list[str]]:
    """Last parts of the layers' names."""
    name_of = {module: name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    return [[name_of[layer] for layer, _ in product.forwards] for product in products]


@pytest.mark.parametrize("family", FAMILIES)
def test_joint_products_change_no_output_and_leave_the_model_unchanged_afterwards(family: str) -> None:
    model = tiny_model(family).requires_grad_(False)
    expected = model(input_ids=IDS).logits
    products = joint_products(model)
    found = names(model, products)
    # GPT-2 has one product for all three already, and no gate.
    assert found == ([] if family == "gpt2" else [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]] * 2)
    with joined(products):
        torch.testing.assert_close(model(input_ids=IDS).logits, expected)
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(model(input_ids=IDS).logits, expected)


def test_several_layers_are_computed_as_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [nn.Linear(4, width).requires_grad_(False) for width in (3, 5, 2)]
    hidden_states = torch.randn(7, 4)
    expected = [layer(hidden_states) for layer in layers]
    product, linear, calls = JointProduct(layers), torch.nn.functional.linear, []

    def counted(*args: torch.Tensor) -> torch.Tensor:
        calls.append(args)
        return linear(*args)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    with joined([product]):
        for layer, wanted in zip(layers, expected, strict=True):
            torch.testing.assert_close(layer(hidden_states), wanted)
        assert len(calls) == 1
        other = torch.randn(2, 4)  # a single layer with another input is right too
        torch.testing.assert_close(layers[1](other), linear(other, layers[1].weight, layers[1].bias))
        torch.testing.assert_close(layers[0](hidden_states), expected[0])


def test_weights_keep_their_values_and_later_changes_to_them_take_effect() -> None:
    model = tiny_model("qwen2").requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    products = joint_products(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    again = joint_products(model)  # for a second engine: both share one set of weights
    model.load_state_dict({name: weight + 0.1 for name, weight in before.items()})
    expected = model(input_ids=IDS).logits
    for each in (products, again):
        with joined(each):
            torch.testing.assert_close(model(input_ids=IDS).logits, expected)


def test_a_model_with_joint_weights_is_saved_like_any_other(tmp_path: Path) -> None:
    model = tiny_model("llama").requires_grad_(False)
    joint_products(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_trained_weights_are_not_joined_and_later_changes_of_a_lora_take_effect() -> None:
    assert joint_products(tiny_model("llama").requires_grad_(True)) == []
    policy = TokenPolicy(tiny_model("llama"), rank=2)
    products = joint_products(policy.backbone)
    assert {len(layers) for layers in names(policy.backbone, products)} == {2, 3}
    assert not any(layer.weight.requires_grad for product in products for layer, _ in product.forwards)
    with torch.no_grad():
        for weight in policy.backbone.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    expected = policy.backbone(input_ids=IDS).logits
    with joined(products):
        torch.testing.assert_close(policy.backbone(input_ids=IDS).logits, expected)


def test_compiled_layers_are_computed_as_one_product_too() -> None:
    torch._dynamo.reset()
    model = tiny_model("llama").requires_grad_(False)
    expected = model.base_model(input_ids=IDS).last_hidden_state
    products, seen = joint_products(model), []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Callable[..., Any]:
        seen.append(sum(node.target is torch._C._nn.linear for node in graph.graph.nodes))
        return graph.forward

    compiled = torch.compile(model.base_model, backend=backend, fullgraph=True)
    for _ in range(2):
        with joined(products), torch.no_grad():
            torch.testing.assert_close(compiled(input_ids=IDS).last_hidden_state, expected)
    assert seen == [2 * 4], "of seven products per layer four are left, and it was compiled once"
