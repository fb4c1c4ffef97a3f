"""Changes that need another cache of hidden states."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ollm_rl.options.model import IGNORED
from ollm_rl.pretrain import hidden_cache
from tests.pretrain.test_hidden_cache import POSITIONS, Examples, build, option_model, some_examples
from tests.tiny_models import EOS


def other_token(examples: Examples) -> None:
    examples[3]["input_ids"][0] = EOS


def other_label(examples: Examples) -> None:
    examples[3]["labels"][-1] = IGNORED


@pytest.mark.parametrize("change", [other_token, other_label, list.reverse, list.pop])
def test_other_tokens_or_data_are_another_cache(tmp_path: Path, change: Callable[[Examples], Any]) -> None:
    model, examples = option_model(), some_examples()
    first = build(tmp_path, model, examples).folder
    change(examples)
    assert hidden_cache.cache_key(model, examples, POSITIONS)[:16] != first.name


def test_the_same_tokens_split_into_other_examples_are_another_cache() -> None:
    one = [{"input_ids": [1, 2], "labels": [3, 4]}]
    two = [{"input_ids": [1], "labels": [2]}, {"input_ids": [3], "labels": [4]}]
    model = option_model()
    assert hidden_cache.cache_key(model, one, POSITIONS) != hidden_cache.cache_key(model, two, POSITIONS)


def test_another_backbone_precision_or_code_version_is_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [option_model(), option_model(seed=1), option_model(dtype=torch.bfloat16)]
    folders = {build(tmp_path, model).folder for model in models}
    trained = option_model()
    torch.nn.init.ones_(trained.adapter.option_embedding)
    assert build(tmp_path, trained).folder in folders
    monkeypatch.setattr(hidden_cache, "VERSION", hidden_cache.VERSION + 1)
    folders.add(build(tmp_path).folder)
    assert len(folders) == 4 and {folder.parent for folder in folders} == {tmp_path}
