"""Many episodes of text generation in one batched engine, as a ``gymnasium.vector.VectorEnv``.

Letters: B environments, H hidden.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from transformers import PreTrainedTokenizerBase

from ollm_rl.envs.episodes import ActionSpace, Episodes
from ollm_rl.envs.rewards import CORRECTNESS_ALONE
from ollm_rl.model import OptionModel
from ollm_rl.problems import Problem


class TextGenVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """B copies of ``TextGenEnv`` (its docstring is the manual) that share one decode engine.

    Autoreset is NEXT_STEP, Gymnasium's default: the step after an episode's end ignores that environment's action,
    gives reward 0 and returns the first observation of its next episode, whose prompt is prefilled without stopping
    the others.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int,
        model: OptionModel | str,
        problems: Sequence[Problem] | str = "arith",
        *,
        action_space: ActionSpace = "options",
        max_new_tokens: int = 128,
        tokenizer: PreTrainedTokenizerBase | None = None,
        reward_weights: Mapping[str, float] = CORRECTNESS_ALONE,
    ) -> None:
        self.num_envs = num_envs
        self.episodes = Episodes(
            model,
            num_envs,
            problems,
            action_space=action_space,
            max_new_tokens=max_new_tokens,
            tokenizer=tokenizer,
            reward_weights=reward_weights,
        )
        self.single_observation_space, self.single_action_space = self.episodes.spaces()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every environment; returns observations (B, H).

        Raises:
            ValueError: If ``options`` asks for anything; none are known here.
        """
        if options:
            raise ValueError(f"reset got options={options!r}, but knows none; use TextGenEnv to choose a problem")
        super().reset(seed=seed)
        infos: dict[str, Any] = {}
        self._start(range(self.num_envs), infos)
        return self.episodes.observation(), infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Append one token in every environment.

        Args:
            actions: Options or tokens, (B,).

        Returns:
            Observations (B, H), rewards (B,), terminations (B,), truncations (B,), infos.

        Raises:
            ValueError: If an action is out of range; no environment has moved then.
            gymnasium.error.ResetNeeded: Before the first ``reset``.
        """
        if self.episodes.engine.cache is None:
            raise gymnasium.error.ResetNeeded("no episode runs; call reset() first")
        ended = [slot for slot, episode in enumerate(self.episodes.running) if episode is None]
        rewards = np.zeros(self.num_envs)
        terminations, truncations = np.zeros((2, self.num_envs), dtype=bool)
        infos: dict[str, Any] = {}
        if len(ended) < self.num_envs:
            for slot, moved in self.episodes.advance(np.asarray(actions)).items():
                rewards[slot] = moved.reward
                terminations[slot], truncations[slot] = moved.terminated, moved.truncated
                infos = self._add_info(infos, dict(moved.info), slot)
        if ended:
            self._start(ended, infos)
        return self.episodes.observation(), rewards, terminations, truncations, infos

    def _start(self, slots: Sequence[int], infos: dict[str, Any]) -> None:
        drawn = self.np_random.integers(len(self.episodes.problems), size=len(slots))
        for slot, info in zip(slots, self.episodes.start(slots, drawn.tolist()), strict=True):
            infos.update(self._add_info(infos, dict(info), slot))
