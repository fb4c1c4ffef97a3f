"""Advantages and losses of the policy gradient against numbers worked by hand and stable-baselines3."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.buffers import RolloutBuffer

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.training.advantages import (
    episode_advantages,
    gae,
    kl_estimate,
    ppo_loss,
    reinforce_loss,
    topr_loss,
)
from ollm_rl.agents.training.batches import advantages_and_returns
from ollm_rl.decode.rollout import Rollout
from ollm_rl.errors import UsageError


def test_group_advantages_are_rewards_normalised_within_each_group() -> None:
    # Group 1: mean 1/2, variance (4 * 1/4) / 3 = 1/3. Group 2: equal. Group 3: mean 1/4, variance (9 + 3) / 16 / 3.
    rewards = torch.tensor([1.0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 1, 0])
    root = math.sqrt(3) / 2
    expected = [root, -root, -root, root, 0, 0, 0, 0, -0.5, -0.5, 1.5, -0.5]
    torch.testing.assert_close(episode_advantages(rewards, 4, "group"), torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.9])  # the mean of three times 0.9 is not 0.9 in float32
def test_a_group_of_equal_rewards_has_no_advantage(reward: float) -> None:
    assert episode_advantages(torch.full((6,), reward), 3, "group").tolist() == [0.0] * 6


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("none", [1.0, 0.0, 0.25, 1.0, 1.0, 0.5]),
        ("mean", [0.375, -0.625, -0.375, 0.375, 0.375, -0.125]),  # 3.75 / 6 = 0.625
        ("leave-one-out", [0.875, -0.625, -0.25, 0.25, 0.25, -0.5]),  # 1 - (0 + 0.25) / 2, ...
    ],
)
def test_baselines_by_hand(baseline: Any, expected: list[float]) -> None:
    assert episode_advantages(torch.tensor([1, 0, 0.25, 1, 1, 0.5]), 3, baseline).tolist() == expected


@pytest.mark.parametrize("baseline", ["leave-one-out", "group"])
def test_a_group_of_one_has_no_other_rewards_to_compare_with(baseline: Any) -> None:
    with pytest.raises(UsageError, match=f"group_size=1 leaves nothing for baseline='{baseline}'; give at least 2"):
        episode_advantages(torch.tensor([1.0, 0.0]), 1, baseline)


def test_the_kl_to_the_reference_is_unbiased_and_never_negative() -> None:
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    each = kl_estimate((reference / policy).log())  # of every action once
    assert float(each[0]) == pytest.approx(3 / 7 - 1 - math.log(3 / 7))
    assert float((policy * each).sum()) == pytest.approx(float((policy * (policy / reference).log()).sum()))
    assert (each >= 0).all()
    assert kl_estimate((policy / policy).log()).tolist() == [0, 0, 0]


def test_gae_by_hand_passes_over_positions_without_a_choice() -> None:
    # gamma = lambda = 1/2. Row 1, backwards: decision t=2: 4 - 2 = 2; decision t=0: (1/2 * 2 - 1) + 1/4 * 2 = 1/2.
    # Row 2, backwards: t=3: 8 - 4 = 4; t=2: (1/2 * 4 - 6) + 1/4 * 4 = -3; t=1: (1/2 * 6 - 1) + 1/4 * -3 = 5/4.
    values = torch.tensor([[1.0, 9, 2, 9], [9, 1, 6, 4], [9, 9, 9, 9]])
    decisions = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    found = gae(torch.tensor([4.0, 8.0, 5.0]), values, decisions, gamma=0.5, gae_lambda=0.5)
    assert found.tolist() == [[0.5, 0, 2, 0], [0, 1.25, -3, 4], [0, 0, 0, 0]]


@pytest.mark.parametrize("decides", [False, True])
def test_fewer_than_two_decisions_are_not_normalised(decides: bool) -> None:
    written = torch.ones(2, 3, dtype=torch.bool)
    values = torch.full((2, 3), 0.25)
    decisions = torch.zeros(2, 3, dtype=torch.bool)
    decisions[1, 2] = decides
    rollout = Rollout([[1], [2]], written.long(), written, decisions, values.log(), values, written[:, 0])
    config = RLConfig(out=Path("unused"), model="unused", algorithm="ppo")
    advantages, returns = advantages_and_returns(config, rollout, torch.ones(2))
    expected = torch.zeros(2, 3)
    expected[1, 2] = 0.75 * decides  # the reward of 1 less the value
    assert torch.equal(advantages, expected) and torch.equal(returns, expected + 0.25)


def test_undiscounted_gae_is_the_reward_minus_the_value() -> None:
    values = torch.tensor([[0.25, 0.5, 0.125]])
    found = gae(torch.tensor([1.0]), values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, gae_lambda=1.0)
    assert found.tolist() == [[0.75, 0.5, 0.875]]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.97, 0.9), (1.0, 1.0), (0.9, 0.0)])
def test_gae_is_that_of_stable_baselines3_where_every_position_is_a_decision(gamma: float, gae_lambda: float) -> None:
    episodes, steps = 3, 7
    generator = np.random.default_rng(0)
    values = generator.normal(size=(episodes, steps)).astype(np.float32)
    rewards = generator.normal(size=episodes).astype(np.float32)
    buffer = RolloutBuffer(
        steps, Box(-1, 1, (1,)), Discrete(2), device="cpu", gamma=gamma, gae_lambda=gae_lambda, n_envs=episodes
    )
    for step in range(steps):
        buffer.add(
            np.zeros((episodes, 1)),
            np.zeros((episodes, 1)),
            rewards if step == steps - 1 else np.zeros(episodes),
            np.full(episodes, step == 0),
            torch.from_numpy(values[:, step]),
            torch.zeros(episodes),
        )
    buffer.compute_returns_and_advantage(last_values=torch.full((episodes,), 50.0), dones=np.ones(episodes))
    found = gae(
        torch.from_numpy(rewards),
        torch.from_numpy(values),
        torch.ones(episodes, steps, dtype=torch.bool),
        gamma=gamma,
        gae_lambda=gae_lambda,
    )
    np.testing.assert_allclose(found.numpy(), buffer.advantages.T, rtol=1e-5, atol=1e-6)


def test_reinforce_loss_by_hand() -> None:
    log_ratio = torch.tensor([2.0, 0.5]).log()
    torch.testing.assert_close(reinforce_loss(log_ratio, torch.tensor([3.0, -4.0])), torch.tensor(-2.0))  # -(6 - 2) / 2


def test_at_a_ratio_of_1_the_gradient_is_that_of_log_pi_times_advantage() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator, requires_grad=True)
    chosen = torch.tensor([0, 3, 1, 1, 2])
    advantages = torch.randn(5, generator=generator)
    log_probs = logits.log_softmax(-1)[range(5), chosen]
    (expected,) = torch.autograd.grad(-(log_probs * advantages).mean(), logits, retain_graph=True)
    (reinforce,) = torch.autograd.grad(
        reinforce_loss(log_probs - log_probs.detach(), advantages), logits, retain_graph=True
    )
    (ppo,) = torch.autograd.grad(ppo_loss(log_probs - log_probs.detach(), advantages, 0.2), logits)
    torch.testing.assert_close(reinforce, expected)
    torch.testing.assert_close(ppo, expected)


def test_ppo_loss_by_hand() -> None:
    # min(1.5, 1.2) = 1.2; min(-0.5, -0.8) = -0.8; 1.1 * 2 = 2.2.
    log_ratio = torch.tensor([1.5, 0.5, 1.1]).log()
    loss = ppo_loss(log_ratio, torch.tensor([1.0, -1.0, 2.0]), 0.2)
    torch.testing.assert_close(loss, torch.tensor(-(1.2 - 0.8 + 2.2) / 3))


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [
        (1.5, 1.0, 0.0),  # already more probable than allowed
        (0.5, -1.0, 0.0),  # already less probable than allowed
        (0.5, 1.0, -0.5),  # moved the wrong way: nothing stops the way back
        (1.5, -1.0, 1.5),
        (1.1, 1.0, -1.1),
        (0.9, -1.0, 0.9),
    ],
)
def test_clipping_stops_the_gradient_only_where_the_policy_moved_far_in_the_advantages_direction(
    ratio: float, advantage: float, gradient: float
) -> None:
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
    ppo_loss(log_ratio, torch.tensor([advantage]), 0.2).backward()
    torch.testing.assert_close(log_ratio.grad, torch.tensor([gradient]))


def test_topr_by_hand() -> None:
    """Episode 0 is right. Episodes 1 and 2 are wrong: the policy writes 1 half as often as before, and 2 more often."""
    log_probs = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)
    log_ratio = torch.tensor([-5.0, math.log(0.25), math.log(2.0), 1.0])
    advantages, episodes = torch.tensor([2.0, -1.0, -1.0, -3.0]), torch.tensor([0, 1, 1, 2])
    loss = topr_loss(log_probs, log_ratio, advantages, episodes)
    # Weights: 1 in spite of the ratio e^-5; 1/4 * 2 = 1/2 for both decisions of episode 1; at most 1 for episode 2.
    assert float(loss) == pytest.approx(-(2 * -1 + 0.5 * (2 + 3) + 3 * 4) / 4)
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([-0.5, 0.125, 0.125, 0.75])
