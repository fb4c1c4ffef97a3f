"""The policy gradient on a task small enough to enumerate: the mean of every estimator is the exact gradient."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from ollm_rl.agents.policies.anchored import AnchoredPolicy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.training.advantages import episode_advantages, reinforce_loss, topr_loss
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


def written(policy: OptionPolicy | AnchoredPolicy, paths: Sequence[Sequence[int]]) -> Rollout:
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


def topr_gradient(policy: OptionPolicy, behaviour: OptionPolicy, path: Sequence[int], advantage: float) -> torch.Tensor:
    """What TOPR follows for an episode of another policy, (K, H)."""
    rollout = written(behaviour, [path])
    log_probs = policy.evaluate(rollout).log_probs
    log_ratio = log_probs - rollout.log_probs[rollout.decisions]
    gains = torch.full_like(log_ratio, advantage)
    episodes = torch.zeros(len(gains), dtype=torch.long)
    loss = topr_loss(log_probs, log_ratio, gains, episodes) * len(gains)
    (found,) = torch.autograd.grad(loss, weight_of(policy))
    return -found


def test_topr_on_its_own_episodes_is_exact_in_the_mean(policies: tuple[OptionPolicy, OptionPolicy]) -> None:
    policy, _ = policies
    mean = torch.zeros(3, HIDDEN)
    for path in PATHS:  # a constant taken from all rewards changes no mean, and makes some advantages negative
        advantage = REWARDS[tokens_of(path)] - 0.4
        mean += probability(policy, path) * topr_gradient(policy, policy, path, advantage)
    torch.testing.assert_close(mean, exact(policy), rtol=1e-5, atol=1e-6)


def test_topr_on_old_episodes_counts_right_ones_fully_and_wrong_ones_by_their_ratio(
    policies: tuple[OptionPolicy, OptionPolicy],
) -> None:
    """Brute force: the sum over all choices of mu * weight * advantage * the gradient of log pi."""
    policy, _ = policies
    model = policy.model
    behaviour = OptionPolicy(model)
    torch.manual_seed(5)
    behaviour.policy = nn.Sequential(nn.Linear(HIDDEN, 3, bias=False))
    found, expected = torch.zeros(3, HIDDEN), torch.zeros(3, HIDDEN)
    tapered = []
    for first, second in {tokens_of(path): path for path in PATHS}.values():  # one path for each pair of tokens
        path, tokens = (first, second), tokens_of((first, second))
        same = [each for each in PATHS if tokens_of(each) == tokens]
        advantage = REWARDS[tokens] - 0.4
        mu = sum(probability(behaviour, each) for each in same)
        weight = weight_of(policy).detach().requires_grad_()
        rows = weight.softmax(0)
        pi = torch.stack([rows[a, STATES[()]] * rows[b, STATES[(tokens[0],)]] for a, b in same]).sum()
        factor = 1.0 if advantage >= 0 else min(1.0, float(pi.detach()) / mu)
        tapered.append(factor)
        (slope,) = torch.autograd.grad(pi.log(), weight)
        expected += mu * factor * advantage * slope
        found += mu * topr_gradient(policy, behaviour, path, advantage)
    assert min(tapered) < 1, "no weight was tapered"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_an_anchored_policy_is_the_exact_one_in_the_mean() -> None:
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=3, width=8))
    policy = AnchoredPolicy(model)
    torch.manual_seed(2)
    nn.init.normal_(last_layer(policy).weight, std=0.3)
    weights = list(policy.shift.parameters())
    head = model.backbone.get_output_embeddings().weight

    def of_tokens(state: tuple[int, ...]) -> dict[int, torch.Tensor]:
        tokens = sorted(set(TOKENS[state]))
        hidden = nn.functional.one_hot(torch.tensor(STATES[state]), HIDDEN).float()
        probs = (head[tokens] @ policy.shift(hidden)).softmax(0)
        return dict(zip(tokens, probs, strict=True))

    expected = torch.zeros(())
    mean = [torch.zeros_like(weight) for weight in weights]
    for first, one in of_tokens(()).items():
        for second, other in of_tokens((first,)).items():
            expected = expected + one * other * REWARDS[first, second]
            rollout = written(policy, [(TOKENS[()].index(first), TOKENS[first,].index(second))])
            log_ratio = policy.evaluate(rollout).log_probs - rollout.log_probs[rollout.decisions]
            gains = torch.full_like(log_ratio, REWARDS[first, second])
            loss = -reinforce_loss(log_ratio, gains) * len(gains)
            for total, found in zip(mean, torch.autograd.grad(loss, weights), strict=True):
                total += float(one * other) * found
    for one_sum, slope in zip(mean, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(one_sum, slope, rtol=1e-4, atol=1e-6)


def last_layer(policy: AnchoredPolicy) -> nn.Linear:
    layer = policy.shift.network[-1]
    assert isinstance(layer, nn.Linear)
    return layer
