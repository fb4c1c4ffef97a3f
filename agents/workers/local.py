"""Rollouts of an iteration's episodes, checked: the part of training that runs in this process or in Ray workers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.completions import Checked, Checks
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.base import Policy
from ollm_rl.answers.pool import shared_pool
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import Rollout, collect
from ollm_rl.problems.sources import Problem
from ollm_rl.streams import prompt_indices, sampling_uniforms


class WorkerError(RuntimeError):
    """Rollouts cannot go on: an exception within a worker, with its traceback, or workers that die at one place."""


@dataclass(frozen=True)
class Batch:
    """Episodes of one iteration and what they cost.

    Attributes:
        rollout: N episodes, those of a group side by side.
        checked: What each wrote and its reward.
        seconds_verify: That checking kept a rollout waiting.
        seconds_communication: For sending the weights out and bringing the episodes in.
        staleness: Updates of the policy between the weights that wrote the episodes and those they are to update.
        restarts: Workers that were replaced meanwhile.
    """

    rollout: Rollout
    checked: list[Checked]
    seconds_verify: float
    seconds_communication: float = 0.0
    staleness: int = 0
    restarts: int = 0

    @property
    def rewards(self) -> torch.Tensor:
        """(N,), where the rollout is."""
        return torch.tensor([row.reward for row in self.checked], device=self.rollout.tokens.device)


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
        ValueError: If the slots do not fit the memory.
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
        self.engine = DecodeEngine(policy.backbone, slots, max_length, compiled=config.compiled)

    def collect(self, iteration: int, episodes: range) -> Batch:
        """Write the completions of some of an iteration's episodes, numbered from 0, and check their answers.

        What an episode is asked and the numbers it is sampled with depend on seed, iteration and its own number alone.
        """
        config = self.config
        groups = config.episodes // config.group_size
        asked = np.repeat(prompt_indices(config.seed, iteration, groups, len(self.problems)), config.group_size)
        indices = asked[episodes.start : episodes.stop]
        uniforms = sampling_uniforms(config.seed, iteration, config.episodes, config.max_new_tokens)
        checks = Checks([self.problems[index] for index in indices], self.tokenizer, shared_pool())
        rollout = collect(
            self.policy,
            self.engine,
            [self.prompts[index] for index in indices],
            max_new_tokens=config.max_new_tokens,
            end_token=int(self.tokenizer.eos_token_id),
            generator=None,
            uniforms=uniforms[episodes.start : episodes.stop],
            on_end=checks.begin,
        )
        weights = asdict(config.rewards)
        checked = checks.finish(weights, max_tokens=config.max_new_tokens, failure=config.failure_reward)
        return Batch(rollout, checked, checks.seconds)
