"""The vector environment for stable-baselines3, whose agents do not accept a ``gymnasium.vector.VectorEnv``.

Letters: B environments, H hidden.
"""

from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from ollm_rl.envs.vector import TextGenVectorEnv
from ollm_rl.errors import UsageError, extra

with extra("sb3"):
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn


class TextGenVecEnv(VecEnv):
    """``TextGenVectorEnv`` as SB3's ``VecEnv``.

    Infos contain ``terminal_observation`` at an episode's end and ``TimeLimit.truncated``. SB3 uses them to add the
    value of the last observation to the reward of a truncated episode.

    Args:
        envs: Must have autoreset mode SAME_STEP, which SB3 itself uses, and observation mode ``hidden``.

    Raises:
        UsageError: If the autoreset or observation mode is another.
    """

    def __init__(self, envs: TextGenVectorEnv) -> None:
        if not isinstance(envs, TextGenVectorEnv):
            raise UsageError(f"envs={type(envs).__name__} does not suit SB3; give a TextGenVectorEnv")
        if envs.autoreset_mode != AutoresetMode.SAME_STEP:
            raise UsageError(f"autoreset_mode={envs.autoreset_mode.value!r} does not suit SB3; give 'SameStep'")
        if envs.episodes.observation_mode != "hidden":
            raise UsageError(
                f"observation_mode={envs.episodes.observation_mode!r} does not suit SB3, which has no text "
                "observations; give 'hidden'"
            )
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> np.ndarray:
        """Begin an episode in every environment; returns observations (B, H). ``seed(number)`` applies to one reset."""
        observations, infos = self.envs.reset(seed=self._seeds[0])
        self.reset_infos = _rows(infos, self.num_envs)
        self._reset_seeds()
        return np.asarray(observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Store the actions, (B,), for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Append one token in every environment; returns observations (B, H), rewards (B,), dones (B,), B infos."""
        observations, rewards, terminations, truncations, infos = self.envs.step(self._actions)
        rows, dones = _rows(infos, self.num_envs), terminations | truncations
        for slot in np.flatnonzero(dones).tolist():
            final_obs, final_info = rows[slot].pop("final_obs"), rows[slot].pop("final_info")
            self.reset_infos[slot] = rows[slot]
            rows[slot] = {**final_info, "terminal_observation": final_obs}
        for row, truncated in zip(rows, truncations.tolist(), strict=True):
            row["TimeLimit.truncated"] = truncated
        return np.asarray(observations), rewards.astype(np.float32), dones, rows

    def close(self) -> None:
        """Free the memory of the engine."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the shared environment, once for each requested environment."""
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> NoReturn:
        """Always refused: all environments are one object."""
        raise NotImplementedError(f"{attr_name!r} cannot be set for one environment: all share one engine")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> NoReturn:
        """Always refused: all environments are one object."""
        raise NotImplementedError(f"{method_name!r} cannot be called on one environment: all share one engine")

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """False for each, since there are no single environments to wrap."""
        return [False for _ in self._get_indices(indices)]


def _rows(infos: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Gymnasium's batched infos as one dictionary per environment."""
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, values in infos.items():
        if not name.startswith("_"):
            column = _rows(values, count) if isinstance(values, dict) else values
            for slot in np.flatnonzero(infos[f"_{name}"]).tolist():
                rows[slot][name] = column[slot]
    return rows
