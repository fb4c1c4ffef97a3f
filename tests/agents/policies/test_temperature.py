"""Policies at a temperature: what is drawn has the log-probability that the update computes again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TopPLogitsWarper

from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.policies.sampling import nucleus
from ollm_rl.errors import UsageError
from ollm_rl.options.decisions import is_first
from tests.agents.policies.test_anchored import make, shaken
from tests.agents.policies.test_policies import fixed_policy, option_model, sampled, shaken_lora
from tests.tiny_models import HIDDEN
from tests.training_runs import config

POLICIES: dict[str, Any] = {
    "lora": shaken_lora,
    "latent": lambda: OptionPolicy(option_model(5)),
    **{kind: lambda kind=kind: shaken(make(kind)) for kind in ("anchored", "top tokens", "frozen head")},
}


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_ratios_are_those_of_the_distribution_that_was_sampled(kind: str, temperature: float) -> None:
    policy: Any = POLICIES[kind]()
    hidden = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(0))
    tokens, log_probs = policy.choices(hidden)
    powers = log_probs.exp() ** (1 / temperature)
    expected = powers / powers.sum(-1, keepdim=True)
    policy.temperature = temperature
    torch.testing.assert_close(policy.choices(hidden).log_probs.exp(), expected, rtol=1e-4, atol=1e-6)
    action = policy.act(hidden, torch.tensor([0.1, 0.4, 0.6, 0.95]))
    for row in range(4):
        at = (tokens[row] == action.tokens[row]) & (log_probs[row] > -torch.inf)
        assert float(action.log_probs[row].exp()) == pytest.approx(float(expected[row][at]), rel=1e-3)
    rollout = sampled(policy)
    with torch.no_grad():
        again = policy.evaluate(rollout)
    torch.testing.assert_close(again.log_probs, rollout.log_probs[rollout.decisions], rtol=1e-4, atol=1e-4)
    assert again.entropies.isfinite().all() and (again.entropies >= -1e-5).all()


def test_draws_of_a_latent_policy_follow_the_tokens_at_the_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = fixed_policy(monkeypatch, [0.5, 0.2, 0.3], [7, 4, 7])  # 0.8 and 0.2; squared and normalised: 16 to 1
    policy.temperature = 0.5
    uniforms = (torch.arange(1700) + 0.5) / 1700
    tokens = policy.act(torch.zeros(1700, HIDDEN), uniforms).tokens
    assert (tokens == 4).sum() == 100


def test_a_temperature_and_the_gradient_by_option_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="temperature=0.7 is that of tokens, and option_gradient='option' learns from"):
        config(Path("x"), Path("m"), "arith", policy="latent", option_gradient="option", temperature=0.7)


def test_a_nucleus_is_that_of_transformers() -> None:
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)) * 2
    for top_p in (0.01, 0.3, 0.9, 0.999):
        warped = TopPLogitsWarper(top_p)(None, logits).softmax(-1)
        found = nucleus(logits.softmax(-1), top_p)
        torch.testing.assert_close(found / found.sum(-1, keepdim=True), warped)
    assert torch.equal(nucleus(logits, 1.0), logits)


def test_only_first_options_of_a_token_are_drawn_at_a_temperature() -> None:
    policy = OptionPolicy(option_model(5))
    policy.temperature = 1.5
    hidden = torch.randn(64, HIDDEN, generator=torch.Generator().manual_seed(1))
    action = policy.act(hidden, torch.rand(64, generator=torch.Generator().manual_seed(2)))
    first = is_first(action.stored["option_tokens"])
    assert first.gather(1, action.stored["options"][:, None]).all()
