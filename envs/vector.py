"""Many episodes of text generation in one batched engine, as a ``gymnasium.vector.VectorEnv``.

Letters: B environments, H hidden.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from transformers import PreTrainedTokenizerBase

from ollm_rl.envs.episodes import (
    ActionSpace,
    Episodes,
    Observation,
    ObservationMode,
    check_render_mode,
    check_reset_options,
    row,
)
from ollm_rl.envs.option_info import InfoField
from ollm_rl.envs.own_rewards import Rewards
from ollm_rl.envs.rewards import CORRECTNESS_ONLY
from ollm_rl.errors import UsageError
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.problem import Problem

Step = tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


class TextGenVectorEnv(VectorEnv[Observation, np.ndarray, np.ndarray]):
    """B copies of ``TextGenEnv`` (its docstring is the manual) that share one decode engine.

    A prompt is prefilled without stopping the other episodes. Gymnasium's ``autoreset_mode`` decides when an
    environment begins its next episode:

    - ``NEXT_STEP`` (the default): the step after an episode's end ignores that environment's action, gives reward 0 and
      returns the first observation of its next episode.
    - ``SAME_STEP``: the step that ends an episode returns the first observation of the next episode. The last
      observation and info of the ended one are ``infos["final_obs"]`` and ``infos["final_info"]``.
    - ``DISABLED``: ``reset(options={"reset_mask": ...})`` begins the episodes of the masked environments. A step is
      refused while any environment has ended.

    Every environment draws its problems from its own stream, so they are the same in all three modes.

    ``compiled`` compiles the model with torch.compile, which is worthwhile on CUDA and takes half a minute at first, or
    minutes if the model's layers differ.
    """

    metadata = {"render_modes": ["ansi"], "autoreset_mode": AutoresetMode.NEXT_STEP}
    closed = True  # until it is built: gymnasium 1.1 closes environments that are collected

    def __init__(
        self,
        num_envs: int,
        model: OptionModel | str | Path,
        problems: Sequence[Problem] | str = "arith",
        *,
        action_space: ActionSpace = "options",
        max_new_tokens: int = 128,
        tokenizer: PreTrainedTokenizerBase | None = None,
        observation_mode: ObservationMode = "hidden",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        reward: Rewards = None,
        reward_weights: Mapping[str, float] = CORRECTNESS_ONLY,
        info_fields: Sequence[InfoField] = (),
        compiled: bool = False,
    ) -> None:
        check_render_mode(render_mode)
        self.num_envs = num_envs
        if autoreset_mode not in [*AutoresetMode, *(mode.value for mode in AutoresetMode)]:
            modes = ", ".join(mode.value for mode in AutoresetMode)
            raise UsageError(f"autoreset_mode={autoreset_mode!r} is unknown; give one of {modes}")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self.episodes = Episodes(
            model,
            num_envs,
            problems,
            action_space=action_space,
            max_new_tokens=max_new_tokens,
            tokenizer=tokenizer,
            observation_mode=observation_mode,
            reward=reward,
            reward_weights=reward_weights,
            info_fields=info_fields,
            compiled=compiled,
        )
        self.single_observation_space, self.single_action_space = self.episodes.spaces()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._streams: list[np.random.Generator] = []
        self._next = np.zeros(num_envs, dtype=np.int64)  # problem of every environment's next episode, drawn in advance
        self.closed = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in every environment, or in those where ``options["reset_mask"]`` (B,) is true.

        Returns:
            Observations of all environments, (B, H), and infos of those that began an episode.

        Raises:
            UsageError: If ``options`` has another key, or the mask is not an array of B truth values of which at least
                one is true; the running episodes are not affected.
            gymnasium.error.ClosedEnvironmentError: After ``close``.
        """
        check_reset_options(options, "reset_mask", "an array of truth values")
        slots = self._to_reset(options or {})
        super().reset(seed=seed)
        if seed is not None or not self._streams:
            fresh = self.np_random.spawn(self.num_envs)
            self._streams = self._streams or fresh
            for slot in slots:
                self._streams[slot] = fresh[slot]
                self._draw(slot)
        infos = self._start(slots, {})
        return self.episodes.observation(), {**infos, **self._options()}

    def step(self, actions: np.ndarray) -> Step:
        """Append one token in every environment.

        Args:
            actions: Options or tokens, (B,).

        Returns:
            Observations (B, H), rewards (B,), terminations (B,), truncations (B,), infos.

        Raises:
            UsageError: If an action is out of range; no environment changes then.
            gymnasium.error.ResetNeeded: Before the first ``reset``, and in mode DISABLED if an episode has ended.
            gymnasium.error.ClosedEnvironmentError: After ``close``.
        """
        self.episodes.check_open()
        if not self._streams:
            raise ResetNeeded("no episode runs; call reset() first")
        begin = np.flatnonzero(~self.episodes.running).tolist()
        if begin and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ResetNeeded(f"environments {begin} have ended; reset them with options={{'reset_mask': ...}}")
        result = self.episodes.advance(np.asarray(actions))
        shown, last = result.ran, None
        if result.ended and self.autoreset_mode == AutoresetMode.SAME_STEP:
            begin += result.ended
            shown = shown & ~(result.terminations | result.truncations)
            last = self.episodes.fetch_observation(result.ended)
        # The same as ``_add_info`` for each environment, in one call.
        infos: dict[str, Any] = {"token": np.where(shown, result.tokens, 0), "_token": shown} if shown.any() else {}
        if begin:
            infos = self._start(begin, infos)
        observation, final = self.episodes.fetch_observation(), last() if last else None
        rewards = np.zeros(self.num_envs)
        for index, (slot, (reward, facts)) in enumerate(zip(result.ended, result.outcomes(), strict=True)):
            rewards[slot] = reward
            info = facts if final is None else {"final_obs": row(final, index), "final_info": facts}
            infos = self._add_info(infos, info, slot)
        infos |= self._options()
        return observation(), rewards, result.terminations, result.truncations, infos

    def _options(self) -> dict[str, np.ndarray]:
        """The requested fields of all running episodes, with Gymnasium's masks."""
        fields = self.episodes.options_now()
        return fields | {f"_{name}": self.episodes.running.copy() for name in fields}

    def render(self) -> tuple[str, ...] | None:
        """Prompt and completion so far of every environment, with ``render_mode="ansi"``."""
        return tuple(map(self.episodes.text, range(self.num_envs))) if self.render_mode == "ansi" else None

    def close_extras(self, **kwargs: Any) -> None:
        """Free the memory of the engine."""
        self.episodes.close()

    def _to_reset(self, options: dict[str, Any]) -> list[int]:
        """Environments that a reset with these options restarts."""
        mask = options.get("reset_mask", np.ones(self.num_envs, dtype=bool))
        if not (isinstance(mask, np.ndarray) and mask.shape == (self.num_envs,) and mask.dtype == bool and mask.any()):
            raise UsageError(
                f"reset_mask={mask!r} must be an array of {self.num_envs} truth values, at least one of them true"
            )
        if not self._streams and not mask.all():
            raise UsageError("the first reset must begin all environments; leave reset_mask out")
        slots: list[int] = np.flatnonzero(mask).tolist()
        return slots

    def _start(self, slots: list[int], infos: dict[str, Any]) -> dict[str, Any]:
        """Begin episodes in these slots; returns ``infos`` extended by theirs."""
        drawn = self._next[slots].tolist()
        for slot in slots:
            self._draw(slot)
        # The other environments will need their next prompts in about this order: longest completion first.
        others = self.episodes.running.copy()
        others[slots] = False
        soonest = np.argsort(-self.episodes.completion_lengths[others], kind="stable")
        upcoming = self._next[others][soonest].tolist()
        for slot, info in zip(slots, self.episodes.start(slots, drawn, upcoming), strict=True):
            infos = self._add_info(infos, dict(info), slot)
        return infos

    def _draw(self, slot: int) -> None:
        self._next[slot] = self._streams[slot].integers(len(self.episodes.problems))
