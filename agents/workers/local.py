"""Rollouts of an iteration's episodes, checked: the part of training that runs in this process or in Ray workers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.completions import Checks, Completion, rewarded
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.base import Policy
from ollm_rl.answers.pool import shared_pool
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import Rollout, collect
from ollm_rl.decode.turns import Turns
from ollm_rl.errors import RunError
from ollm_rl.problems.sources import Problem
from ollm_rl.streams import prompt_indices, sampling_uniforms


class WorkerError(RunError):
    """Rollouts cannot go on: an exception within a worker, with its traceback, or workers that die at one place."""


@dataclass(frozen=True)
class Batch:
    """Episodes of one iteration and what they cost.

    Attributes:
        rollout: N episodes, those of a group side by side.
        completions: What each wrote, with its reward.
        seconds_verify: That checking kept a rollout waiting.
        seconds_communication: For sending the weights out and bringing the episodes in.
        staleness: Updates of the policy between the weights that wrote the episodes and those they are to update.
        restarts: Workers that were replaced meanwhile.
    """

    rollout: Rollout
    completions: list[Completion]
    seconds_verify: float
    seconds_communication: float = 0.0
    staleness: int = 0
    restarts: int = 0

    @property
    def rewards(self) -> torch.Tensor:
        """(N,), where the rollout is."""
        return torch.tensor([one.reward for one in self.completions], device=self.rollout.tokens.device)


class RolloutSource(Protocol):
    """Where the trainer's rollouts come from: this process, or Ray workers."""

    @property
    def turns(self) -> Turns | None:
        """Of the policy on an engine of this process, where there is one, so that evaluations can use it."""
        ...

    def collect_iteration(self, iteration: int) -> Batch:
        """All episodes of an iteration, on the policy's device and from its weights of now."""
        ...

    def close(self) -> None:
        """End what was started for it."""
        ...


class RolloutWorker:
    """A policy that writes on an engine of its own, and the checks of what it writes.

    Args:
        config: Of the run.
        policy: Moved by others between two calls of ``collect``.
        tokenizer: Of its backbone.
        problems: All of the run.
        prompts: Token ids of each.
        episodes: The most that one call of ``collect`` asks for.
        max_length: Of the engine's slots, in tokens; what the prompts need where left out.

    Raises:
        UsageError: If the slots do not fit the memory.
    """

    def __init__(
        self,
        config: RLConfig,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Problem],
        prompts: Sequence[list[int]],
        episodes: int,
        max_length: int | None = None,
    ) -> None:
        self.config, self.policy, self.tokenizer, self.problems = config, policy, tokenizer, problems
        self.prompts = prompts
        max_length = max_length or max(map(len, prompts)) + config.max_new_tokens
        slots = min(config.num_slots, episodes)
        engine = DecodeEngine(policy.backbone, slots, max_length, compiled=config.compiled)
        self.turns = Turns(engine, policy.act)

    def collect_iteration(self, iteration: int) -> Batch:
        """All episodes of an iteration; this makes a worker the trainer's `RolloutSource`."""
        return self.collect(iteration, range(self.config.episodes))

    def close(self) -> None:
        """Nothing was started."""

    def collect(self, iteration: int, episodes: range) -> Batch:
        """Write the completions of some of an iteration's episodes, numbered from 0, and check their answers.

        What an episode is asked and the numbers it is sampled with depend only on seed, iteration and its own number.
        """
        config, end_token = self.config, int(self.tokenizer.eos_token_id)
        groups = config.episodes // config.group_size
        asked = np.repeat(prompt_indices(config.seed, iteration, groups, len(self.problems)), config.group_size)
        indices = asked[episodes.start : episodes.stop]
        uniforms = sampling_uniforms(config.seed, iteration, config.episodes, config.max_new_tokens)
        checks = Checks([self.problems[index] for index in indices], self.tokenizer, end_token, shared_pool())
        rollout = collect(
            self.turns,
            [self.prompts[index] for index in indices],
            max_new_tokens=config.max_new_tokens,
            end_token=end_token,
            uniforms=uniforms[episodes.start : episodes.stop],
            on_end=checks.begin,
        )
        weights = asdict(config.rewards)
        completions = [
            rewarded(one, weights, max_tokens=config.max_new_tokens, failure=config.failure_reward)
            for one in checks.finish()
        ]
        return Batch(rollout, completions, checks.seconds)
