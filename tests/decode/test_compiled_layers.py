"""A model's layers are compiled once for all, and only where that changes nothing."""

from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from ollm_rl.decode.compiled_layers import compiled_layers
from ollm_rl.decode.engine import DecodeEngine
from tests.decode.test_engine import random_ids
from tests.tiny_models import FAMILIES, HIDDEN, VOCAB, tiny_model


def test_one_graph_serves_all_layers_and_numbers_of_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=32, num_hidden_layers=5, num_attention_heads=4
    )
    backbone = LlamaForCausalLM(config).eval()
    plain, compiled = DecodeEngine(backbone, 4, 24), DecodeEngine(backbone, 4, 24, compiled=True)
    assert [module.layer_idx for module in backbone.modules() if hasattr(module, "layer_idx")] == list(range(5))
    prompts = random_ids(5, 3, 8, 4)
    for engine in (plain, compiled):
        engine.prefill(range(4), prompts)
    for count in (4, 3, 2):
        tokens = torch.arange(count) + 1
        torch.testing.assert_close(compiled.step(tokens), plain.step(tokens), rtol=1e-4, atol=1e-4)
        for engine in (plain, compiled):
            engine.keep(range(count - 1))
    assert len(seen) == 2, "one graph of a pass over prompts and one of a step"


def test_prompts_of_any_length_with_a_window_need_no_more_than_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    backbone = tiny_model("mistral")
    plain, compiled = DecodeEngine(backbone, 2, 48), DecodeEngine(backbone, 2, 48, compiled=True)
    for lengths in ((30, 20), (25, 24), (40, 9)):  # all beyond the window
        prompts = random_ids(*lengths)
        torch.testing.assert_close(
            compiled.prefill([0, 1], prompts), plain.prefill([0, 1], prompts), rtol=1e-4, atol=1e-4
        )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_of_usual_models_are_one_function(family: str) -> None:
    assert compiled_layers(tiny_model(family)) is not None


def test_layers_that_compute_with_their_number_are_compiled_with_the_whole_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = LlamaDecoderLayer.forward

    def forward(layer: Any, hidden_states: torch.Tensor, **arguments: Any) -> Any:
        return original(layer, hidden_states * (1 + layer.self_attn.layer_idx), **arguments)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    assert compiled_layers(tiny_model("llama")) is None


def test_layers_of_many_kinds_are_compiled_with_the_whole_model() -> None:
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_layer": 5, "n_head": 4}
    for scaled in (False, True):  # by the number of the layer, so all differ
        config = GPT2Config(**sizes, scale_attn_by_inverse_layer_idx=scaled)
        assert (compiled_layers(GPT2LMHeadModel(config).eval()) is None) == scaled


def test_of_a_model_that_reads_images_the_layers_for_text_are_compiled() -> None:
    sizes: dict[str, Any] = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_attention_heads": 4}
    images = CLIPVisionConfig(**sizes, num_hidden_layers=2, image_size=4, patch_size=2)
    text = LlamaConfig(**sizes, num_hidden_layers=3, vocab_size=VOCAB)
    backbone = LlavaForConditionalGeneration(LlavaConfig(vision_config=images, text_config=text)).eval()
    layers = compiled_layers(backbone)
    assert layers is not None
    assert [type(layer) for layer in layers._layers] == [LlamaDecoderLayer] * 3
