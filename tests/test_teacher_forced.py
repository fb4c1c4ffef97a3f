"""Teacher-forced evaluation against a case counted by hand."""

from typing import Any

import pytest
import torch

from ollm_rl.config import OptionConfig
from ollm_rl.model import OptionModel
from ollm_rl.pretrain.teacher_forced import teacher_forced
from ollm_rl.problems import Problem
from tests.tiny_models import VOCAB, tiny_model, tiny_tokenizer


def solved(solution: str) -> Problem:
    return Problem(id=solution, question="?", solution=solution, answer="1", language="en")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> OptionModel:
    """The backbone says "#" everywhere, the options "#", " ", "#", "#"; the encoder takes option 1."""
    hash_, space = tiny_tokenizer()("# ").input_ids
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=4, width=8))

    def constant(values: list[float]) -> Any:
        return lambda hidden, *rest: torch.tensor(values).expand(*hidden.shape[:-1], -1)

    monkeypatch.setattr(model, "lm_logits", constant([float(token == hash_) for token in range(VOCAB)]))
    monkeypatch.setattr(model, "option_tokens", constant([hash_, space, hash_, hash_]))
    monkeypatch.setattr(model.adapter, "encode", constant([0.0, 5.0, 0.0, 0.0]))
    # Option 1 alone is the most probable; the three that say "#" together are more probable than it.
    monkeypatch.setattr(model, "option_logits", constant([0.2, 0.4, 0.2, 0.2]))
    return model


def test_shares_of_right_tokens_are_those_counted_by_hand(model: OptionModel) -> None:
    # Seven tokens: "####" four times "#", then " ", "1" and the end of text.
    result = teacher_forced(model, tiny_tokenizer(), [solved("#### 1")] * 3)
    assert result["backbone"] == pytest.approx([4 / 7] * 3)
    assert result["oracle"] == pytest.approx([5 / 7] * 3)
    assert result["encoder"] == pytest.approx([1 / 7] * 3)
    assert result["policy"] == pytest.approx([4 / 7] * 3)
    assert result["oracle_gain"] == pytest.approx([1 / 7] * 3)
    assert result["distinct_tokens"] == 2
    assert (result["num_problems"], result["num_tokens"]) == (3, 21)


def test_tokens_count_alike_and_the_interval_is_over_problems(model: OptionModel) -> None:
    # 4 of 7 and 4 of 11 tokens: 8 of 18 in all; resampled problems give any share between the two.
    result = teacher_forced(model, tiny_tokenizer(), [solved("#### 1"), solved("#### 12345")] * 10)
    value, low, high = result["backbone"]
    assert value == pytest.approx(8 / 18)
    assert 4 / 11 < low < value < high < 4 / 7


def test_problems_without_solutions_are_refused(model: OptionModel) -> None:
    with pytest.raises(ValueError, match="the problems hold no worked solutions; teacher forcing needs them"):
        teacher_forced(model, tiny_tokenizer(), [solved("")])
