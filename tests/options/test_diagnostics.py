"""Diagnostics of the options against cases counted by hand; a provoked collapse is reported."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ollm_rl.options.config import OptionConfig
from ollm_rl.options.diagnostics import (
    collapse_warning,
    covered_modes,
    distinct_tokens,
    mutual_information,
    option_diagnostics,
    option_usage,
    whole_coverage,
)
from ollm_rl.options.model import CountedStates, OptionModel
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from tests.tiny_models import HIDDEN, VOCAB, save_backbone, tiny_model

LOG2, LOG3 = math.log(2), math.log(3)


def test_usage_is_the_entropy_of_the_mean_choice_over_log_k() -> None:
    # Mean (3/4, 1/4): entropy 2 log 2 - 3/4 log 3 = 0.5623 nats of log 2 = 0.6931.
    assert option_usage(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).item() == pytest.approx(0.8113, abs=1e-4)
    assert option_usage(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).item() == pytest.approx(1)
    assert option_usage(torch.tensor([[0.0, 1.0, 0.0]] * 5)).item() == 0
    assert option_usage(torch.ones(5, 1)).item() == 1


def test_distinct_tokens_are_counted_in_any_order() -> None:
    assert distinct_tokens(torch.tensor([[3, 3, 3], [3, 4, 3], [9, 1, 5]])).tolist() == [1, 2, 3]


def test_the_mutual_information_is_the_entropy_of_the_mixture_less_the_mean_entropy() -> None:
    # Two options, a policy of (3/4, 1/4).
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # the token determines the option: the entropy of the policy
    equal = torch.tensor([[0.5, 0.5], [0.5, 0.5]])  # the token says nothing about the option
    # (1, 0) and (1/2, 1/2): mixture (7/8, 1/8), entropy 3 log 2 - 7/8 log 7, less 1/4 log 2.
    mixed = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    policy = torch.tensor([0.75, 0.25]).log().expand(3, 2)
    found = mutual_information(torch.stack([certain, equal, mixed]).log(), policy)
    expected = [2 * LOG2 - 0.75 * LOG3, 0.0, 3 * LOG2 - 7 / 8 * math.log(7) - LOG2 / 4]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_a_mode_is_covered_if_some_option_offers_it() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.1, 0.1, 0.0], [0.96, 0.01, 0.01, 0.01, 0.01]])
    modes, offered = covered_modes(torch.tensor([[0, 2, 4], [1, 1, 2]]), probs)
    assert modes.tolist() == [4, 1]
    assert offered.tolist() == [2, 0]


def test_the_diagnostics_of_a_batch_are_shares_of_its_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three positions of one completion far apart, and a fourth that is ignored.

    The backbone gives tokens 1 and 2 half each everywhere. Options: (1, 1), (1, 2), (3, 1).
    """
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=2, width=8))
    named = torch.tensor([[1, 1], [1, 2], [3, 1], [5, 6]])
    sure = torch.full((4, 2, VOCAB), -100.0).scatter(2, named[..., None], 0.0)
    backbone = torch.full((4, VOCAB), -100.0)
    backbone[:, 1:3] = 0.0
    monkeypatch.setattr(model, "decode_options", lambda hidden: sure[: len(hidden)])
    monkeypatch.setattr(model, "lm_logits", lambda hidden: backbone[: len(hidden)])
    monkeypatch.setattr(model, "option_logits", lambda hidden: torch.zeros(len(hidden), 2))
    states = CountedStates(torch.zeros(4, HIDDEN), torch.tensor([1, 3, 3, 5]), torch.tensor([0, 8, 7, 9]))
    assert option_diagnostics(model, states, max_positions=3) == pytest.approx(
        {
            "distinct_tokens": 5 / 3,
            "live_share": 2 / 3,
            "oracle_token_accuracy": 2 / 3,
            "whole_coverage": math.nan,
            "mutual_information": 2 * LOG2 / 3,  # log 2 where two tokens are equally likely, 0 where there is one
            "mode_coverage_live": 3 / 4,  # both modes at the second position, only token 1 at the third
            "mode_coverage_first": 1
            / 2,  # only token 1 at the first position and at the third, which is an eighth token
        },
        abs=1e-5,
        nan_ok=True,
    )


def test_a_solution_counts_as_offered_only_if_all_its_tokens_are_and_it_is_whole() -> None:
    # Four solutions, of which the first misses its beginning and the last may miss its end; the third lacks a token.
    offsets = torch.tensor([3, 0, 1, 2, 0, 1, 0])
    offered = torch.tensor([True, True, True, True, True, False, True])
    assert float(whole_coverage(offered, offsets)) == 0.5
    assert math.isnan(float(whole_coverage(torch.tensor([True, True]), torch.tensor([0, 1]))))
    assert math.isnan(float(whole_coverage(torch.tensor([True, True]), torch.tensor([3, 4])))), "none begins"


SOUND = {"kl": 0.2, "distinct_tokens": 1.4, "option_usage": 0.9}


def test_options_that_differ_and_are_used_are_not_a_collapse() -> None:
    assert collapse_warning(SOUND, OptionConfig()) is None


def test_one_option_is_not_a_collapse() -> None:
    metrics = {"kl": 0.0, "distinct_tokens": 1.0, "option_usage": 1.0}
    assert collapse_warning(metrics, OptionConfig()) is not None
    assert collapse_warning(metrics, OptionConfig(num_options=1)) is None


@pytest.mark.parametrize(
    ("metrics", "config", "parts"),
    [
        (
            {"kl": 0.003},
            OptionConfig(),
            ["no information about the next token (KL 0.003 nats)", "raise options.kl_target above 0.2"],
        ),
        (
            {"distinct_tokens": 1.004},
            OptionConfig(kl_weight_init=1.0),
            ["all options predict the same token (1.00 distinct", "kl_weight_init below 1.0"],
        ),
        (
            {"option_usage": 0.1},
            OptionConfig(kl_target=None),
            ["only one option is used (usage 0.10 of 1)", "set options.kl_target"],
        ),
        (
            {"kl": 0.001, "option_usage": 0.05},
            OptionConfig(prior="policy"),
            ["no information about the next token", "use options.prior=uniform, raise options.kl_target"],
        ),
    ],
)
def test_a_collapse_is_reported_with_what_to_change(
    metrics: dict[str, float], config: OptionConfig, parts: list[str]
) -> None:
    warning = collapse_warning({**SOUND, **metrics}, config)
    assert warning is not None and "\n" not in warning
    assert all(part in warning for part in parts), warning


def run(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, **options: Any
) -> tuple[list[str], dict[str, float]]:
    """Train on prefixes with two equally likely continuations; returns the warnings and the last metrics."""
    data = tmp_path / "data.jsonl"
    rows = [{"question": q, "solution": s, "answer": s[5:]} for q in "abcdefgh" for s in ("#### 1", "#### 2")]
    data.write_text("\n".join(map(json.dumps, rows)))
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="ollm_rl"):
        out = run_sft(
            SFTConfig(
                out=tmp_path / name,
                backbone=save_backbone(tmp_path / "backbone"),
                data=f"jsonl:{data}",
                max_steps=60,
                batch_size=16,
                learning_rate=1e-2,
                save_steps=60,
                device="cpu",
                options=OptionConfig(num_options=4, width=16, **options),
            )
        )
    lines = [line for line in json.loads((out / "metrics.json").read_text()) if "loss" in line]
    return [record.getMessage() for record in caplog.records if "collapsed" in record.getMessage()], lines[-1]


def test_a_kl_weight_that_starts_high_collapses_the_options_and_the_run_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warnings, metrics = run(tmp_path, "sound", caplog, kl_target=0.4)
    assert not warnings and metrics["distinct_tokens"] > 1.1 and metrics["mutual_information"] > 0.01
    # Such a weight keeps the encoder at the uniform prior for every next token.
    warnings, metrics = run(tmp_path, "collapsed", caplog, kl_target=None, kl_weight_init=10.0)
    assert metrics["kl"] < 1e-3 and metrics["mutual_information"] < 0.05
    assert len(warnings) == 1 and "start with options.kl_weight_init below 10.0" in warnings[0]
