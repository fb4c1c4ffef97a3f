"""Backbones by name: how the packed file is unpacked; the tests do not need its package."""

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from ollm_rl.backbones import loading as backbones
from ollm_rl.errors import UsageError
from tests.tiny_models import tiny_model


def test_the_unpacked_smollm2_has_the_logits_of_the_packed_one_and_no_quantization_config(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed: Any = tiny_model("llama")
    packed.config.quantization_config = {"quant_method": "gguf", "gguf_file": "x.gguf"}
    monkeypatch.setattr(backbones, "_source", lambda name: {})
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lambda **_: packed)
    model: Any = backbones._load_smollm2(torch.float32).eval()
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, packed(ids).logits)
    assert "quantization_config" not in model.config.to_dict()


def test_loading_draws_no_bar_and_leaves_those_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert transformers_logging.is_progress_bar_enabled()
    backbones.load_backbone("tiny-arith")
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    assert transformers_logging.is_progress_bar_enabled()


def test_a_name_that_is_neither_here_nor_on_a_hub_out_of_reach_is_told_in_plain_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backbones, "hub_answers", lambda: False)
    reason = "no such folder, not in the hub's cache, and the hub cannot be reached"
    with pytest.raises(UsageError, match=rf"backbone 'runs/mistyped' cannot be loaded \({reason}\); give tiny-arith"):
        backbones.load_tokenizer("runs/mistyped")
