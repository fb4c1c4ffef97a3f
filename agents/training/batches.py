"""What updates learn from: an iteration's episodes with their advantages.

Letters: N episodes, T tokens (or decisions, for policies that do not read sequences).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.training.advantages import episode_advantages, gae
from ollm_rl.decode.rollout import Rollout, stacked_rows
from ollm_rl.devices import to_device


@dataclass(frozen=True)
class UpdateBatch:
    """The episodes of one iteration.

    Attributes:
        rollout: N episodes.
        advantages: (N, T).
        returns: Targets of the value head, (N, T).
        lengths: Number of tokens (or decisions) of every completion.
        num_decisions: Number of decisions of every completion.
    """

    rollout: Rollout
    advantages: torch.Tensor
    returns: torch.Tensor
    lengths: list[int]
    num_decisions: list[int]

    @classmethod
    def from_rollout(
        cls, config: RLConfig, rollout: Rollout, rewards: torch.Tensor, *, whole: bool = True
    ) -> "UpdateBatch":
        """Compute advantages and returns of a rollout from its rewards, (N,); without ``whole`` keep only decisions."""
        advantages, returns = advantages_and_returns(config, rollout, rewards)
        if not whole:
            positions = rollout.decision_positions()
            advantages, returns = advantages.gather(1, positions), returns.gather(1, positions)
            rollout = rollout.at_decisions()
        lengths, num_decisions = rollout.completion_mask.sum(1).tolist(), rollout.decisions.sum(1).tolist()
        return cls(rollout, advantages, returns, lengths, num_decisions)

    def select(self, rows: Sequence[int]) -> "UpdateBatch":
        """Some of its episodes, in this order."""
        index, width = to_device(rows, self.advantages.device), max(self.lengths[row] for row in rows)
        return UpdateBatch(
            self.rollout.select(rows, width),
            self.advantages[index, :width],
            self.returns[index, :width],
            [self.lengths[row] for row in rows],
            [self.num_decisions[row] for row in rows],
        )

    @staticmethod
    def join(parts: Sequence["UpdateBatch"]) -> "UpdateBatch":
        """The episodes of all parts, concatenated."""
        return UpdateBatch(
            Rollout.join([part.rollout for part in parts]),
            stacked_rows([part.advantages for part in parts]),
            stacked_rows([part.returns for part in parts]),
            [length for part in parts for length in part.lengths],
            [number for part in parts for number in part.num_decisions],
        )

    def know_places(self) -> None:
        """Tell the rollout where its decisions are, if that is known, so that the host does not wait for the device.

        It is known if every token is a decision: a completion begins at the first column.
        """
        if self.lengths == self.num_decisions:
            rows = np.repeat(np.arange(len(self.lengths)), self.lengths)
            columns = np.concatenate([np.arange(length) for length in self.lengths])
            rows_and_columns = to_device(np.stack([rows, columns]), self.advantages.device)
            self.rollout.places = rows_and_columns[0], rows_and_columns[1]

    @cached_property
    def advantaged(self) -> list[bool]:
        """Whether an episode has an advantage that is not 0 at one of its decisions."""
        flags: list[bool] = (self.rollout.decisions & (self.advantages != 0)).any(1).tolist()
        return flags

    def size(self, row: int) -> int:
        """Number of tokens of an episode's prompt and completion."""
        return len(self.rollout.prompts[row]) + self.lengths[row]

    def num_bytes(self) -> int:
        """Memory of its tensors."""
        tensors = [self.advantages, self.returns, *_fields(self.rollout).values(), *self.rollout.stored.values()]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))

    def state(self) -> dict[str, Any]:
        """Everything as plain data and tensors, to be saved."""
        return _fields(self) | {"rollout": _fields(self.rollout)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "UpdateBatch":
        """The batch of a ``state``."""
        return cls(**{**state, "rollout": Rollout(**state["rollout"])})


def _fields(record: UpdateBatch | Rollout) -> dict[str, Any]:
    """Its fields, without what it keeps beside them."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def advantages_and_returns(
    config: RLConfig, rollout: Rollout, rewards: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and targets of the value head, both (N, T), from rewards (N,), by ``config.algorithm``."""
    if config.algorithm == "reinforce":
        advantages = episode_advantages(rewards, config.group_size, config.baseline)
        return advantages[:, None].expand_as(rollout.values), rollout.values
    advantages = gae(rewards, rollout.values, rollout.decisions, gamma=config.gamma, gae_lambda=config.gae_lambda)
    at_decisions = rollout.at_places(advantages)
    if len(at_decisions) < 2:  # they have no standard deviation
        return advantages, advantages + rollout.values
    return (advantages - at_decisions.mean()) / (at_decisions.std() + 1e-6), advantages + rollout.values
