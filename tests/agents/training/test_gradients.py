"""The policy gradient on a task small enough to enumerate: the mean of every estimator is the exact gradient."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.training.advantages import episode_advantages, reinforce_loss
from ollm_rl.decode.rollout import Rollout
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.tiny_models import HIDDEN, tiny_model

# An episode has two tokens. The three options lead to these tokens at first, after token 7, and after token 8.
TOKENS = {(): (7, 7, 8), (7,): (4, 5, 5), (8,): (4, 4, 4)}
REWARDS = {(7, 4): 1.0, (7, 5): 0.25, (8, 4): 0.5}
STATES = {state: index for index, state in enumerate(TOKENS)}
PATHS = list(itertools.product(range(3), repeat=2))  # options chosen


@pytest.fixture(scope="module")
def policies() -> tuple[OptionPolicy, OptionPolicy]:
    """Option policies by token and by option with the same weights: one row of logits per state."""
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=3, width=8))
    torch.manual_seed(1)
    logits = nn.Linear(HIDDEN, 3, bias=False)
    nn.init.normal_(logits.weight)
    by_token, plain = OptionPolicy(model), OptionPolicy(model, plain=True)
    by_token.policy = plain.policy = nn.Sequential(logits)
    return by_token, plain


def tokens_of(path: Sequence[int]) -> tuple[int, int]:
    first = TOKENS[()][path[0]]
    return first, TOKENS[(first,)][path[1]]


def written(policy: OptionPolicy, paths: Sequence[Sequence[int]]) -> Rollout:
    """Episodes in which these options were chosen, as ``collect`` would return them."""
    states = torch.tensor([[STATES[()], STATES[(tokens_of(path)[0],)]] for path in paths])
    option_tokens = torch.tensor([[TOKENS[()], TOKENS[(tokens_of(path)[0],)]] for path in paths])
    mask = torch.ones(len(paths), 2, dtype=torch.bool)
    rollout = Rollout(
        prompts=[[1]] * len(paths),
        tokens=torch.tensor([tokens_of(path) for path in paths]),
        completion_mask=mask,
        decisions=mask & (option_tokens != option_tokens[..., :1]).any(-1),
        log_probs=torch.zeros(mask.shape),
        values=torch.zeros(mask.shape),
        terminated=mask[:, 0],
        stored={
            "hidden_states": nn.functional.one_hot(states, HIDDEN).float(),
            "option_tokens": option_tokens,
            "options": torch.tensor(paths),
        },
    )
    with torch.no_grad():
        rollout.log_probs[rollout.decisions] = policy.evaluate(rollout).log_probs
    return rollout


def weight_of(policy: OptionPolicy) -> torch.Tensor:
    head = policy.policy[0]
    assert isinstance(head, nn.Linear)
    return head.weight


def gradient(policy: OptionPolicy, paths: Sequence[Sequence[int]], advantages: torch.Tensor) -> torch.Tensor:
    """Gradient of the mean return of these episodes, as the loss estimates it, (K, H)."""
    rollout = written(policy, paths)
    log_ratio = policy.evaluate(rollout).log_probs - rollout.log_probs[rollout.decisions]
    gains = advantages[:, None].expand(-1, 2)[rollout.decisions]
    loss = reinforce_loss(log_ratio, gains) * len(gains) / len(paths)  # a mean over decisions -> over episodes
    (found,) = torch.autograd.grad(loss, weight_of(policy))
    return -found


def probability(policy: OptionPolicy, path: Sequence[int]) -> float:
    """Probability of choosing these options."""
    rows = weight_of(policy).detach().softmax(0)
    return float(rows[path[0], STATES[()]] * rows[path[1], STATES[(tokens_of(path)[0],)]])


def exact(policy: OptionPolicy) -> torch.Tensor:
    """The gradient of the expected reward, by enumerating all choices."""
    weight = weight_of(policy).detach().requires_grad_()
    rows = weight.softmax(0)
    expected = sum(
        (rows[a, STATES[()]] * rows[b, STATES[(tokens_of((a, b))[0],)]] * REWARDS[tokens_of((a, b))] for a, b in PATHS),
        torch.zeros(()),
    )
    (found,) = torch.autograd.grad(expected, weight)
    return found


def rewards(paths: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor([REWARDS[tokens_of(path)] for path in paths])


@pytest.mark.parametrize("which", [0, 1], ids=["by token", "plain"])
def test_the_gradient_is_the_exact_one_in_the_mean(policies: tuple[OptionPolicy, OptionPolicy], which: int) -> None:
    policy = policies[which]
    mean = sum(probability(policy, path) * gradient(policy, [path], rewards([path])) for path in PATHS)
    torch.testing.assert_close(mean, exact(policy), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", [0, 1], ids=["by token", "plain"])
def test_leaving_one_out_keeps_the_gradient_exact_in_the_mean(
    policies: tuple[OptionPolicy, OptionPolicy], which: int
) -> None:
    policy = policies[which]
    mean = torch.zeros(3, HIDDEN)
    for pair in itertools.product(PATHS, repeat=2):
        advantages = episode_advantages(rewards(pair), 2, "leave-one-out")
        mean += probability(policy, pair[0]) * probability(policy, pair[1]) * gradient(policy, pair, advantages)
    torch.testing.assert_close(mean, exact(policy), rtol=1e-5, atol=1e-6)


def test_adding_up_options_of_one_token_lowers_the_variance(policies: tuple[OptionPolicy, OptionPolicy]) -> None:
    def variance(policy: OptionPolicy) -> float:
        squares = (float(gradient(policy, [path], rewards([path])).square().sum()) for path in PATHS)
        mean_square = sum(probability(policy, path) * square for path, square in zip(PATHS, squares, strict=True))
        return mean_square - float(exact(policy).square().sum())

    by_token, plain = map(variance, policies)
    assert 0 < by_token < 0.9 * plain
