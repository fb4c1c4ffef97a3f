"""A sample of the sweep over model classes; the whole is ``experiments/results/model_classes.md``."""

import pytest

from ollm_rl.experiments.bench.model_classes import examine, report, tiny_model


@pytest.mark.parametrize(
    "model_type",
    # Plain, experts, two windows, sinks, compressed keys, parallel blocks, learned positions, a text model with eyes.
    ["olmo2", "mixtral", "gemma3_text", "gpt_oss", "deepseek_v2", "phi", "biogpt", "gemma3"],
)
def test_these_classes_give_the_tokens_of_generate(model_type: str) -> None:
    result = examine(tiny_model(model_type))
    assert result.kind == "right", result.detail


@pytest.mark.parametrize(
    "model_type", ["mbart", "roberta", "llama4_text", "rwkv", "qwen3_next", "cohere", "prophetnet"]
)
def test_these_classes_are_refused_by_name(model_type: str) -> None:
    result = examine(tiny_model(model_type))
    assert result.kind == "refused", result.detail


def test_the_table_counts_the_outcomes() -> None:
    olmo, mbart = (examine(tiny_model(name)) for name in ("olmo2", "mbart"))
    table = report([("olmo2", "Olmo2ForCausalLM", olmo), ("mbart", "MBartForCausalLM", mbart)])
    assert "2 model types: 1 right, 1 refused." in table
    assert "| mbart | MBartForCausalLM | refused | MBartForCausalLM decodes other" in table
