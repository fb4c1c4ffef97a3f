"""A per-step Gym loop in the manner of RL4LMs, with which ``decode.py`` compares the engine.

Letters: T tokens.
"""

import copy
from typing import Any

import gymnasium
import numpy as np
import torch

from ollm_rl.experiments.bench.contenders import Clock, Engine, Workload, wait


class ContextEnv(gymnasium.Env[dict[str, np.ndarray], np.int64]):
    """One sample per environment, as in RL4LMs. The observation is the whole padded context, copied at every step."""

    def __init__(self, prompt: list[int], written: list[int], max_length: int) -> None:
        self.context = [*prompt, *written]
        self.max_length = max_length

    def step(self, action: np.int64) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Append a token."""
        self.context.append(int(action))
        return self.observation(), 0.0, False, False, {}

    def observation(self) -> dict[str, np.ndarray]:
        """Context and mask, (T,) each."""
        ids = np.zeros(self.max_length, dtype=np.int64)
        ids[: len(self.context)] = self.context
        return copy.deepcopy({"ids": ids, "mask": np.arange(self.max_length) < len(self.context)})


class GymLoop:
    """A per-step loop in the manner of RL4LMs, which encodes every context again for each token.

    Finished environments leave the batch, which favours the loop. It is slow, so only every ``every``-th step is run,
    from the contexts that our engine wrote, and its time is multiplied by ``every``.
    """

    def __init__(self, work: Workload, clock: Clock, engine: Engine, every: int) -> None:
        self.work, self.clock, self.engine = work, clock, engine
        self.every = min(every, min(work.lengths))

    @torch.no_grad()
    def __call__(self) -> float:
        """Estimate the seconds of writing everything once."""
        work, device = self.work, self.work.backbone.device
        assert self.engine.rollout is not None
        written = self.engine.rollout.tokens.tolist()
        seconds = 0.0
        for first in range(0, len(work.prompts), work.slots):
            rows = range(first, min(first + work.slots, len(work.prompts)))
            for step in range(self.every // 2, max(work.lengths[row] for row in rows), self.every):
                active_rows = [row for row in rows if work.lengths[row] > step]
                envs = [ContextEnv(work.prompts[row], written[row][:step], work.max_length) for row in active_rows]
                observations = [env.observation() for env in envs]
                wait(device)
                started = self.clock()
                ids = torch.from_numpy(np.stack([each["ids"] for each in observations])).to(device)
                mask = torch.from_numpy(np.stack([each["mask"] for each in observations])).to(device)
                longest = int(mask.sum(1).max())
                hidden = work.model.hidden_states(ids[:, :longest], mask[:, :longest].long())
                last = hidden[torch.arange(len(active_rows), device=device), mask.sum(1) - 1]
                actions = work.policy.act(last, torch.rand(len(active_rows), device=device)).tokens.cpu().numpy()
                for env, action in zip(envs, actions, strict=True):
                    env.step(action)
                seconds += self.every * (self.clock() - started)
        return seconds
