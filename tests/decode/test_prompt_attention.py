"""Compiled passes over whole prompts: no mask where none is needed, and the same results."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.prompt_attention import NAME, is_causal, use_causal_attention
from tests.decode.test_engine import random_ids
from tests.tiny_models import WINDOW, tiny_model


def test_only_what_needs_a_mask_is_read_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[bool] = []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Callable[..., Any]:
        calls = [node.kwargs for node in graph.graph.nodes if node.target is F.scaled_dot_product_attention]
        assert all(call["is_causal"] == (call["attn_mask"] is None) for call in calls)
        masks.extend(call["attn_mask"] is not None for call in calls)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    torch._dynamo.reset()
    backbone, prompts = tiny_model("llama"), random_ids(14)
    expected = DecodeEngine(backbone, 1, 48).prefill([0], prompts)
    compiled = DecodeEngine(backbone, 1, 48, pass_tokens=9, compiled=True)
    torch.testing.assert_close(compiled.prefill([0], prompts), expected, rtol=1e-4, atol=1e-4)
    assert masks == [False, True], "what is compiled for all layers, and for the second piece, which has a past"
    assert backbone.config._attn_implementation == "sdpa"


def test_windows_and_attention_that_gives_other_results_keep_their_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    def causal(model: PreTrainedModel, window: int | None, max_length: int) -> bool:
        return is_causal(model, window, [], max_length)

    llama, mistral = tiny_model("llama"), tiny_model("mistral")
    assert causal(llama, None, 48)
    assert causal(mistral, WINDOW + 1, WINDOW) and not causal(mistral, WINDOW, WINDOW)
    assert not causal(tiny_model("llama", attention="eager"), None, 48)
    both_ways = partial(AttentionInterface()["sdpa"], is_causal=False)
    monkeypatch.setitem(AttentionInterface._global_mapping, NAME, both_ways)
    assert not causal(llama, None, 48)


def test_without_a_mask_a_token_does_not_see_what_follows() -> None:
    model = tiny_model("llama")
    ids = torch.arange(1, 11)[None]
    expected = model.base_model(input_ids=ids).last_hidden_state
    with use_causal_attention(model.config):
        torch.testing.assert_close(model.base_model(input_ids=ids).last_hidden_state, expected)
        part = model.base_model(input_ids=ids[:, :6]).last_hidden_state
    torch.testing.assert_close(part, expected[:, :6])
