"""Backbones by name."""

import pytest
from transformers.utils import logging as transformers_logging

from ollm_rl.backbones import loading as backbones
from ollm_rl.errors import UsageError


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
