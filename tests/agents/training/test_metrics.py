"""What an iteration's episodes show, worked by hand."""

import pytest
import torch

from ollm_rl.agents.completions import Completion
from ollm_rl.agents.training.metrics import episode_metrics
from ollm_rl.agents.workers.local import Batch
from ollm_rl.answers.pool import Verdict
from ollm_rl.decode.rollout import Rollout
from ollm_rl.problems.problem import Problem


def completion(reward: float) -> Completion:
    return Completion(
        problem=Problem(id="p", question="2+2?", solution="", answer="4", language="en"),
        text="5",
        tokens=1,
        terminated=True,
        verdict=Verdict(False, "5", "last_number", "ok"),
        reward=reward,
        terms={"correctness": 0.0},
    )


def metrics(rewards: list[float]) -> dict[str, float]:
    """Of one group with these rewards, whose completions are single tokens."""
    ones = torch.ones(len(rewards), 1)
    rollout = Rollout([[1]] * len(ones), ones.long(), ones.bool(), ones.bool(), -ones, ones, ones[:, 0].bool())
    return episode_metrics(Batch(rollout, [completion(reward) for reward in rewards], 0.0), len(rewards))


def test_a_group_of_equal_rewards_is_not_mixed_whatever_their_rounded_mean_is() -> None:
    assert metrics([0.7] * 8)["mixed_groups"] == 0
    mixed = metrics([0.7] * 7 + [0.3])
    assert mixed["mixed_groups"] == 1
    assert mixed["reward"] == pytest.approx(0.65)
    assert (mixed["live_share"], mixed["pass_at_group"]) == (1.0, 0.0)
