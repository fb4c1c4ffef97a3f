"""Policies that start as the backbone restricted to offered tokens, and the control without a restriction."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.anchored import AnchoredPolicy, RestrictedPolicy, TopTokensPolicy
from ollm_rl.agents.policies.frozen_head import FrozenHeadPolicy
from ollm_rl.agents.policies.loading import load_policy, trained_weights
from ollm_rl.agents.policies.shift import HiddenShift
from ollm_rl.agents.training.trainer import train
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import Rollout, collect
from ollm_rl.decode.turns import Turns
from ollm_rl.errors import UsageError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.tiny_models import CONTEXT, EOS, HIDDEN, VOCAB, tiny_model
from tests.training_runs import config, weights

Frozen = RestrictedPolicy | FrozenHeadPolicy
MAKERS = ("anchored", "top tokens", "frozen head")


def make(kind: str) -> Frozen:
    torch.manual_seed(0)
    if kind == "top tokens":
        return TopTokensPolicy(tiny_model("llama"), 4)
    if kind == "frozen head":
        return FrozenHeadPolicy(tiny_model("llama"))
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=4, width=16))
    with torch.no_grad():
        model.adapter.option_embedding.mul_(10)  # options that lead to different tokens
    return AnchoredPolicy(model)


def shaken(policy: Frozen) -> Frozen:
    """As after some training."""
    torch.manual_seed(1)
    with torch.no_grad():
        last = policy.shift.network[-1]
        assert isinstance(last, nn.Linear)
        last.weight.normal_(std=0.1)
    return policy


def sampled(policy: Frozen) -> Rollout:
    engine = DecodeEngine(policy.backbone, 3, CONTEXT)
    return collect(
        Turns(engine, policy.act),
        [[5, 6, 7], [9], [30, 31, 32, 33, 34]],
        max_new_tokens=8,
        end_tokens=[EOS],
        generator=torch.Generator().manual_seed(0),
    )


def test_an_untrained_anchored_policy_is_exactly_the_backbone_among_the_offered_tokens() -> None:
    policy = make("anchored")
    assert isinstance(policy, AnchoredPolicy)
    hidden = torch.randn(5, HIDDEN)
    tokens, log_probs = policy.choices(hidden)
    everything = policy.backbone.get_output_embeddings()(hidden)
    for row, offered, found in zip(everything, policy.model.option_tokens(hidden).tolist(), log_probs, strict=True):
        distinct = list(dict.fromkeys(offered))
        expected = dict(zip(distinct, row[distinct].log_softmax(0).tolist(), strict=True))
        assert {t: p for t, p in zip(offered, found.tolist(), strict=True) if p > -torch.inf} == pytest.approx(expected)
    assert policy.act(hidden, None).tokens.tolist() == [
        max(row.tolist(), key=lambda token: float(everything[index, token])) for index, row in enumerate(tokens)
    ]


def test_an_untrained_frozen_head_is_exactly_the_backbone() -> None:
    policy = make("frozen head")
    hidden = torch.randn(5, HIDDEN)
    expected = policy.backbone.get_output_embeddings()(hidden).log_softmax(-1)
    assert torch.equal(policy.choices(hidden).log_probs, expected)
    assert policy.choices(hidden).tokens.tolist() == [list(range(VOCAB))] * 5


def test_top_tokens_are_the_most_probable_ones() -> None:
    policy = make("top tokens")
    hidden = torch.randn(5, HIDDEN)
    order = policy.backbone.get_output_embeddings()(hidden).argsort(-1, descending=True)
    assert policy.choices(hidden).tokens.tolist() == order[:, :4].tolist()


def test_a_shift_scales_and_moves_the_hidden_state() -> None:
    shift = HiddenShift(3)
    hidden = torch.tensor([[1.0, 2.0, -3.0]])
    assert torch.equal(shift(hidden), hidden)
    last = shift.network[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([10.0, 20.0, 30.0, 0.5]))
    assert shift(hidden).tolist() == [[11.5, 23.0, 25.5]]


@pytest.mark.parametrize("kind", MAKERS)
def test_the_probabilities_of_a_rollout_are_evaluated_again_and_the_reference_is_the_start(kind: str) -> None:
    policy = make(kind)
    rollout = sampled(policy)
    at_first = policy.evaluate(rollout)
    torch.testing.assert_close(at_first.log_probs, rollout.log_probs[rollout.decisions], rtol=1e-4, atol=1e-5)
    now = shaken(policy).evaluate(rollout, reference=True)
    assert now.reference is not None and not now.reference.requires_grad
    torch.testing.assert_close(now.reference, at_first.log_probs)
    assert float((now.log_probs - now.reference).detach().abs().max()) > 0.01
    now.log_probs.sum().backward()
    assert all(weight.grad is not None for weight in policy.shift.parameters())
    assert all(weight.grad is None for weight in policy.backbone.parameters())


@pytest.mark.parametrize("kind", MAKERS)
def test_the_entropy_is_that_of_the_choices(kind: str) -> None:
    policy = shaken(make(kind))
    rollout = sampled(policy)
    probs = policy.choices(rollout.stored["hidden_states"][rollout.decisions]).log_probs.exp()
    expected = torch.special.entr(probs).sum(-1)
    torch.testing.assert_close(policy.evaluate(rollout).entropies.detach(), expected, rtol=1e-4, atol=1e-5)


def test_options_of_one_token_have_equal_shares_of_its_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = shaken(make("anchored"))
    assert isinstance(policy, AnchoredPolicy)
    hidden, tokens = torch.randn(2, HIDDEN), torch.tensor([[4, 9, 4, 7], [3, 3, 3, 3]])
    monkeypatch.setattr(policy.model, "option_tokens", lambda hidden: tokens)
    by_token = policy.choices(hidden).log_probs.exp()
    probs = policy.option_probs(hidden, tokens)
    torch.testing.assert_close(probs.sum(-1), torch.ones(2))
    torch.testing.assert_close(
        probs[0], torch.stack([by_token[0, 0] / 2, by_token[0, 1], by_token[0, 0] / 2, by_token[0, 3]])
    )
    torch.testing.assert_close(probs[1], torch.full((4,), 0.25))


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"policy": "anchored"}, AnchoredPolicy),
        ({"action_space": "tokens", "policy": "top-tokens"}, TopTokensPolicy),
        ({"action_space": "tokens", "policy": "frozen-head"}, FrozenHeadPolicy),
    ],
)
def test_a_trained_one_is_loaded_with_its_weights(
    tmp_path: Path, model_folder: Path, data: str, settings: dict[str, Any], kind: type[Frozen]
) -> None:
    run = train(config(tmp_path / "run", model_folder, data, iterations=1, **settings))
    policy, _ = load_policy(str(run))
    assert type(policy) is kind
    found, saved = trained_weights(policy), weights(run)
    assert found.keys() == saved.keys() and all(torch.equal(found[name], saved[name]) for name in found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "lora"}, "policy='lora' does not act over options; give one of anchored, latent"),
        ({"policy": "anchored", "action_space": "tokens"}, "give one of lora, frozen-head, top-tokens"),
        ({"policy": "anchored", "option_gradient": "option"}, "option_gradient=option is not used by policy=anchored"),
        (
            {"policy": "frozen-head", "action_space": "tokens", "lora_rank": 4},
            "lora_rank=4 is not used by policy=frozen-head",
        ),
        ({"kl_target": 0.1}, "kl_target=0.1 with kl_coef=0.0 cannot be steered to; give a kl_coef to start from"),
        ({"replay_steps": 4}, "replay_steps=4 is not used without a replay"),
        ({"algorithm": "ppo", "replay": 4}, "replay=4 is not used by algorithm=ppo"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        RLConfig(out=tmp_path, model="unused", **settings)
