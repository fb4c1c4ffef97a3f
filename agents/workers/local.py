"""Rollouts with checked answers: the part of training that runs in this process or in Ray workers."""

import gc
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.completions import Checks, Completion, rewarded
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.base import Policy
from ollm_rl.answers.pool import shared_pool
from ollm_rl.backbones.vocabulary import end_tokens
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import Rollout, collect
from ollm_rl.decode.turns import Turns
from ollm_rl.errors import RunError
from ollm_rl.metrics.measuring import measuring_pool
from ollm_rl.problems.problem import Problem
from ollm_rl.streams import prompt_indices, sampling_uniforms


class WorkerError(RunError):
    """Rollouts cannot continue: an exception in a worker, with its traceback, or repeated loss of a worker."""


@dataclass(frozen=True)
class Batch:
    """Episodes of one iteration and their costs.

    Attributes:
        rollout: N episodes, with those of a group adjacent.
        completions: Completion of each episode, with its reward.
        seconds_verify: Seconds that a rollout waited for the checks.
        seconds_communication: Seconds for sending the weights and receiving the episodes.
        staleness: Number of updates between the weights that generated the episodes and those to be updated.
        restarts: Number of workers that were replaced meanwhile.
    """

    rollout: Rollout
    completions: list[Completion]
    seconds_verify: float
    seconds_communication: float = 0.0
    staleness: int = 0
    restarts: int = 0

    @property
    def rewards(self) -> torch.Tensor:
        """Rewards of the episodes, (N,), on the rollout's device."""
        return torch.tensor([completion.reward for completion in self.completions], device=self.rollout.tokens.device)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: tensors on the CPU as arrays, which Ray sends in a tenth of the time."""
        return self.__dict__ | {"rollout": _arrays(vars(replace(self.rollout)))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The reverse. Ray's arrays are read-only, so the tensors must not be changed."""
        self.__dict__.update(state | {"rollout": Rollout(**_tensors(state["rollout"]))})


class _Array(NamedTuple):
    """A tensor's numbers, or their bits if NumPy has no such numbers."""

    numbers: np.ndarray
    dtype: torch.dtype


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _arrays(each) for name, each in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    plain = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
    return _Array(plain.contiguous().numpy(), value.dtype)


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tensors(each) for name, each in value.items()}
    if not isinstance(value, _Array):
        return value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arrays that are read-only
        return torch.from_numpy(value.numbers).view(value.dtype)


def settle_heap() -> None:
    """Let Python's collector pass over all that is in use now, until ``gc.unfreeze``.

    A pass over a model and its libraries, half a million objects, takes 0.25 s, and an iteration's records cause some.
    """
    gc.collect()  # else what is no longer in use would stay as long
    gc.freeze()


def episode_shares(config: RLConfig, count: int) -> list[range]:
    """An iteration's episodes in ``count`` shares of whole groups."""
    groups = np.array_split(np.arange(config.episodes // config.group_size), count)
    return [range(int(part[0]) * config.group_size, (int(part[-1]) + 1) * config.group_size) for part in groups]


def packed(batch: Batch) -> Batch:
    """The batch on the CPU, to be sent to the learner, with what the policy stored at decisions only, (M, ...).

    The hidden states are most of what is sent, and an update reads them only there.
    """
    rollout = batch.rollout
    at_decisions = {name: rollout.at_places(tensor) for name, tensor in rollout.stored.items()}
    return replace(batch, rollout=replace(rollout, stored=at_decisions).to("cpu"))


def joined(parts: Sequence[Batch], device: torch.device) -> Batch:
    """The batch of all shares' packed episodes, in order, on a device; what was not sent is 0."""
    (staleness,) = {part.staleness for part in parts}
    rollout = Rollout.join([replace(part.rollout, stored={}) for part in parts]).to(device)
    for name in parts[0].rollout.stored:
        sent = torch.cat([part.rollout.stored[name].to(device) for part in parts])
        rollout.stored[name] = sent.new_zeros(*rollout.decisions.shape, *sent.shape[1:])
        rollout.stored[name][rollout.places] = sent
    return Batch(
        rollout=rollout,
        completions=[completion for part in parts for completion in part.completions],
        seconds_verify=max(part.seconds_verify for part in parts),
        staleness=staleness,
    )


class RolloutSource(Protocol):
    """Source of the trainer's rollouts: this process, or Ray workers."""

    @property
    def turns(self) -> Turns | None:
        """Turns of the policy on this process's engine, so that evaluations can use it; None without such an engine."""
        ...

    def collect_iteration(self, iteration: int) -> Batch:
        """Generate all episodes of an iteration; they are on the policy's device."""
        ...

    def close(self) -> None:
        """Stop what was started for it."""
        ...


class RolloutWorker:
    """Generates episodes with a policy on its own engine and checks their answers.

    Args:
        config: Settings of the run.
        policy: Its weights may change between two calls of ``collect``.
        tokenizer: Tokenizer of its backbone.
        problems: All problems of the run.
        prompts: Token ids of each problem's prompt.
        episodes: Maximum number of episodes per call of ``collect``.
        max_length: Length of the engine's slots, in tokens; what the prompts need if left out.

    Raises:
        UsageError: If the slots do not fit into memory.
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
        self._measuring = measuring_pool(policy.backbone.device.type)
        max_length = max_length or max(map(len, prompts)) + config.max_new_tokens
        slots = min(config.num_slots, episodes)
        engine = DecodeEngine(policy.backbone, slots, max_length, compiled=config.compiled)
        self.turns = Turns(engine, policy.act)

    def collect_iteration(self, iteration: int) -> Batch:
        """Generate all episodes of an iteration, as a `RolloutSource` does."""
        return self.collect(iteration, range(self.config.episodes))

    def close(self) -> None:
        """Do nothing: nothing was started."""

    def collect(self, iteration: int, episodes: range) -> Batch:
        """Generate some of an iteration's episodes, which are numbered from 0, and check their answers.

        An episode's problem and its random numbers depend only on the seed, the iteration and the episode's number.
        """
        config, ends = self.config, end_tokens(self.policy.backbone, self.tokenizer)
        groups = config.episodes // config.group_size
        by_group = prompt_indices(config.seed, iteration, groups, len(self.problems))
        indices = np.repeat(by_group, config.group_size)[episodes.start : episodes.stop]
        uniforms = sampling_uniforms(config.seed, iteration, config.episodes, config.max_new_tokens)
        problems = [self.problems[index] for index in indices]
        checks = Checks(problems, self.tokenizer, ends, shared_pool(), self._measuring)
        rollout = collect(
            self.turns,
            [self.prompts[index] for index in indices],
            max_new_tokens=config.max_new_tokens,
            end_tokens=ends,
            uniforms=uniforms[episodes.start : episodes.stop],
            on_end=checks.begin,
            on_wait=checks.measure,
        )
        weights = config.rewards.weights()
        completions = [
            rewarded(completion, weights, max_tokens=config.max_new_tokens, failure=config.failure_reward)
            for completion in checks.finish()
        ]
        return Batch(rollout, completions, checks.seconds)
