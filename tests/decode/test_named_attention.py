"""Which models give a registered attention what their cache holds; the others are not decoded as if they did."""

from functools import partial

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from ollm_rl.decode import row_attention
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.named_attention import hands_over_cache
from ollm_rl.decode.prompt_attention import is_causal
from ollm_rl.decode.row_attention import reads_live_part
from ollm_rl.decode.row_cache import stored_in_chunks
from tests.decode.test_engine import random_ids
from tests.tiny_models import CONTEXT, HIDDEN, VOCAB, randomized, tiny_model

SIZES = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 4}


def falcon() -> PreTrainedModel:
    """A model that says it uses SDPA but never calls registered attention; no heads share keys."""
    config = FalconConfig(**SIZES, multi_query=False, max_position_embeddings=CONTEXT)
    return randomized(FalconForCausalLM(config).eval())


def test_a_model_hands_over_its_cache_if_registered_attention_gets_the_cached_tensors_of_every_layer() -> None:
    assert hands_over_cache(tiny_model("llama")) and hands_over_cache(tiny_model("gpt2"))
    assert not hands_over_cache(falcon())
    assert not hands_over_cache(tiny_model("llama", attention="eager"))
    # Its cache is compressed, and attention gets what products make of it.
    assert not hands_over_cache(tiny_model("deepseek"))
    changed = tiny_model("llama")
    changed.base_model.layers[1].self_attn.config = tiny_model("llama", attention="eager").config
    assert not hands_over_cache(changed), "one of its layers keeps attention of its own"
    assert changed.config._attn_implementation == "sdpa"


def test_what_only_registered_attention_can_do_is_left_out_for_attention_of_a_models_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = [(4, HIDDEN // 4)] * 2
    llama, own = LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=48)), falcon()
    assert stored_in_chunks(llama, sizes) and not stored_in_chunks(own, sizes)
    assert is_causal(llama, None, [], CONTEXT) and not is_causal(own, None, [], CONTEXT)
    # No GPU is needed to see that the probe decides there too.
    monkeypatch.setattr(row_attention, "HAS_TRITON", True)
    monkeypatch.setattr(PreTrainedModel, "device", torch.device("cuda"))
    monkeypatch.setattr(row_attention, "hands_over_cache", lambda backbone: backbone is llama)
    assert reads_live_part(llama) and not reads_live_part(own)


def test_a_compiled_engine_decodes_a_model_with_attention_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    backbone, prompts, tokens = falcon(), random_ids(9, 5), torch.tensor([3, 4])
    engines = [DecodeEngine(backbone, 2, 24, compiled=compiled) for compiled in (False, True)]
    plain, compiled = (torch.stack([engine.prefill([0, 1], prompts), engine.step(tokens)]) for engine in engines)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
