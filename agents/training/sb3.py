"""Agents of stable-baselines3 and sb3-contrib on the environment: an independent check of our trainer.

They learn over options from h_t with their own networks, which are initialised at random. Time is counted in tokens,
and the environment draws the problems. A run's folder holds ``model.zip`` (SB3's own format) and ``metrics.json`` with
our names.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ollm_rl.agents.completions import Completion, training_metrics, write_completions
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.training.problems import training_problems
from ollm_rl.agents.training.sb3_files import load_agent, save_agent, saved_history
from ollm_rl.agents.training.trainer import OnIteration
from ollm_rl.agents.training.writers import Writers
from ollm_rl.agents.workers.processes import check_processes
from ollm_rl.answers.pool import Verdict
from ollm_rl.devices import resolve_device
from ollm_rl.envs.own_rewards import own_rewards
from ollm_rl.envs.rewards import TERMS
from ollm_rl.envs.sb3 import TextGenVecEnv
from ollm_rl.envs.vector import TextGenVectorEnv
from ollm_rl.errors import UsageError, extra
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.problem import Problem
from ollm_rl.runs import exclusive_run
from ollm_rl.services.trackers import require_packages
from ollm_rl.streams import Purpose, integer_seed

with extra("sb3"):
    from sb3_contrib import RecurrentPPO
    from stable_baselines3 import A2C, DQN, PPO
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecEnvWrapper, VecMonitor
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

REPLAY = 100_000  # transitions in DQN's replay buffer; each holds h_t twice, and all are saved with every checkpoint
DQN_BATCH, DQN_EVERY, DQN_SAMPLED = 256, 4, 8  # 8 samples per new transition, every 4 steps, as in SB3

AGENTS: dict[str, type[BaseAlgorithm]] = {
    "sb3-ppo": PPO,
    "sb3-a2c": A2C,
    "sb3-dqn": DQN,
    "sb3-recurrent-ppo": RecurrentPPO,
}
# What SB3 logs under train/ -> our name and sign.
LOSSES = {
    "policy_gradient_loss": ("policy_loss", 1),  # PPO
    "policy_loss": ("policy_loss", 1),  # A2C
    "value_loss": ("value_loss", 1),
    "entropy_loss": ("entropy", -1),
    "approx_kl": ("approx_kl", 1),
    "clip_fraction": ("clip_fraction", 1),
    "loss": ("loss", 1),
    "learning_rate": ("learning_rate", 1),
}


def train_sb3(
    config: RLConfig,
    on_iteration: OnIteration | None = None,
    *,
    functions: Sequence[Callable[..., Any]] = (),
) -> Path:
    """Train an agent of SB3 for ``iterations`` x ``episodes`` episodes, or resume from its last saved model.

    Args:
        config: Settings of the run; it refuses those that the agent does not use.
        on_iteration: Called with the metrics of every ``episodes`` episodes once they are saved; the run stops if it
            returns False.
        functions: Reward functions of one's own that ``config.reward`` names.

    Returns:
        The folder of the run.

    Raises:
        UsageError: If a setting, the data or the folder does not fit, or a file is damaged.
        MissingError: If the model is missing.
    """
    check_processes(config)
    require_packages(config.report_to)
    agent_class = AGENTS[config.agent]
    device = resolve_device(config.device)
    vec = _environments(config, device, functions)
    settings = agent_settings(config, vec.num_envs)
    with exclusive_run(config.out, "train", config):
        _learn(config, agent_class, vec, settings, device, on_iteration)
    vec.close()
    return config.out


def _learn(
    config: RLConfig,
    agent_class: type[BaseAlgorithm],
    vec: VecMonitor,
    settings: dict[str, Any],
    device: torch.device,
    on_iteration: OnIteration | None,
) -> None:
    """Create or load the agent and run the remaining iterations."""
    history = saved_history(config.out)
    # Every start has its own stream, so that a resumed run does not partly repeat draws made after the last save.
    seed = integer_seed(config.seed, Purpose.SB3, len(history))
    agent = agent_class(env=vec, seed=seed, device=device, **settings)
    if history:
        load_agent(agent, config.out)
        agent.set_random_seed(seed)  # again, since the initial weights took numbers of the stream
    if len(history) < config.iterations:
        # An upper bound: the callback stops after the requested number of episodes.
        episodes_left = (config.iterations - len(history)) * config.episodes + vec.num_envs
        agent.learn(
            episodes_left * config.max_new_tokens,
            callback=_Iterations(config, history, on_iteration),
            log_interval=None,  # type: ignore[arg-type]  # SB3 accepts None, and its logged values then stay for the callback
            reset_num_timesteps=not history,
        )


def _environments(config: RLConfig, device: torch.device, functions: Sequence[Callable[..., Any]]) -> VecMonitor:
    model = OptionModel.from_pretrained(config.model, dtype=getattr(torch, config.dtype), device=device)
    envs = TextGenVectorEnv(
        min(config.num_slots, config.episodes),
        model,
        training_problems(config),
        max_new_tokens=config.max_new_tokens,
        autoreset_mode="SameStep",
        reward=own_rewards(config.reward, functions),
        reward_weights=config.rewards.weights(),
        compiled=config.compiled,
    )
    return VecMonitor(TokenLimitEnds(TextGenVecEnv(envs)))


def agent_settings(config: RLConfig, num_envs: int) -> dict[str, Any]:
    """Arguments for an SB3 agent, under SB3's names.

    Raises:
        UsageError: If a rollout is too small for the minibatches.
    """
    shared: dict[str, Any] = {name: getattr(config, name) for name in ("learning_rate", "gamma", "max_grad_norm")}
    if config.agent == "sb3-dqn":
        return {
            **shared,
            "policy": "MlpPolicy",
            "buffer_size": REPLAY,
            "batch_size": DQN_BATCH,
            "train_freq": DQN_EVERY,
            "gradient_steps": -(-DQN_SAMPLED * DQN_EVERY * num_envs // DQN_BATCH),
            "target_update_interval": config.n_steps * num_envs,
        }
    shared |= {
        "policy": "MlpLstmPolicy" if config.agent == "sb3-recurrent-ppo" else "MlpPolicy",
        "n_steps": config.n_steps,
        "gae_lambda": config.gae_lambda,
        "vf_coef": config.vf_coef,
        "ent_coef": config.ent_coef,
    }
    if config.agent == "sb3-a2c":
        return shared
    steps = config.n_steps * num_envs
    if steps < 2 * config.minibatches:
        raise UsageError(
            f"n_steps={config.n_steps} of {num_envs} episodes are too few for minibatches={config.minibatches}; raise "
            "n_steps"
        )
    return {
        **shared,
        "batch_size": -(-steps // config.minibatches),
        "n_epochs": config.epochs,
        "clip_range": config.clip_range,
    }


class TokenLimitEnds(VecEnvWrapper):
    """An episode that reaches the token limit ends there: the limit is part of the task, as in our `gae`.

    SB3 would add the value of the last observation to the reward. The info of an episode's last step holds its problem
    (``asked``) and whether it ended by itself (``terminated``).
    """

    venv: TextGenVecEnv

    def reset(self) -> VecEnvObs:
        """Begin an episode in every environment; returns observations (B, H)."""
        observations = self.venv.reset()
        self.current_problems = [self._problem(slot) for slot in range(self.num_envs)]
        return observations

    def step_wait(self) -> VecEnvStepReturn:
        """As in ``TextGenVecEnv``, with the infos described above."""
        observations, rewards, ended, infos = self.venv.step_wait()
        for slot in np.flatnonzero(ended).tolist():
            infos[slot] |= {"asked": self.current_problems[slot], "terminated": not infos[slot]["TimeLimit.truncated"]}
            self.current_problems[slot] = self._problem(slot)
        for info in infos:
            info["TimeLimit.truncated"] = False
        return observations, rewards, ended, infos

    def _problem(self, slot: int) -> Problem:
        """The problem of the episode that has just begun."""
        episodes = self.venv.envs.episodes
        return episodes.problems[episodes.find(self.venv.reset_infos[slot]["problem"])]


class _Iterations(BaseCallback):
    """Saves metrics and a checkpoint after every ``episodes`` episodes, and stops after ``iterations``."""

    def __init__(
        self,
        config: RLConfig,
        history: list[dict[str, float]],
        on_iteration: OnIteration | None,
    ) -> None:
        super().__init__()
        self.config, self.history, self.on_iteration = config, history, on_iteration
        self.own = [name.rpartition(":")[2].partition("=")[0] for name in config.reward]  # functions of one's own
        self.stopped = False  # by on_iteration
        self.ended: list[dict[str, Any]] = []  # infos of the episodes since the last row

    def _on_training_start(self) -> None:
        self.writers = Writers(self.config, self.history)
        for row in self.history[-1:]:
            self.writers.log(row)
        self.bar = tqdm(total=self.config.iterations, initial=len(self.history), desc=self.config.out.name)
        self.started = time.perf_counter()

    def _on_step(self) -> bool:
        self.ended += [info for end, info in zip(self.locals["dones"], self.locals["infos"], strict=True) if end]
        while len(self.ended) >= self.config.episodes and self._continues():
            infos, self.ended = self.ended[: self.config.episodes], self.ended[self.config.episodes :]
            self._finish_iteration(infos)
        return self._continues()

    def _continues(self) -> bool:
        return len(self.history) < self.config.iterations and not self.stopped

    def _on_training_end(self) -> None:
        self.writers.close()
        self.bar.close()

    def _finish_iteration(self, infos: list[dict[str, Any]]) -> None:
        completions = [_completion(info, self.own) for info in infos]
        write_completions(self.config.out, len(self.history), completions)
        previous = self.history[-1] if self.history else {"episodes": 0.0, "seconds": 0.0}
        now = time.perf_counter()
        row = {
            "iteration": float(len(self.history)),
            "episodes": previous["episodes"] + len(infos),
            "seconds": previous["seconds"] + now - self.started,
            "timesteps": float(self.num_timesteps),
            **training_metrics(completions),
            **self._losses(),
        }
        self.started = now
        self.history.append(row)
        save_agent(self.model, self.config.out, self.history)
        self.writers.log(row)
        self.bar.set_postfix(reward=f"{row['reward']:.3f}", tokens=f"{row['completion_tokens']:.0f}")
        self.bar.update()
        self.stopped = self.on_iteration is not None and self.on_iteration(row) is False

    def _losses(self) -> dict[str, float]:
        """What SB3 logged at its last update, under our names."""
        logged = self.model.logger.name_to_value
        return {
            ours: sign * float(logged[f"train/{theirs}"])
            for theirs, (ours, sign) in LOSSES.items()
            if f"train/{theirs}" in logged
        }


def _completion(info: dict[str, Any], own: Sequence[str]) -> Completion:
    """The completion of an episode, from the info of its last step; ``own`` names reward functions of one's own."""
    terms = {name: float(info[name]) for name in (*TERMS, *own) if name in info}
    verdict = Verdict(info["verdict"] == "ok" and terms["correctness"] == 1, None, None, info["verdict"])
    return Completion(
        problem=info["asked"],
        text=info["completion"],
        tokens=int(info["episode"]["l"]),
        terminated=info["terminated"],
        verdict=verdict,
        reward=float(info["episode"]["r"]),
        terms=terms,
        faults={name: info[f"{name}_failure"] for name in own if f"{name}_failure" in info},
        own=bool(own),
    )
