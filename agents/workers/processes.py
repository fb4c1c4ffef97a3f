"""Rollouts of several processes, as ``torchrun`` starts them: each writes its share, and all get all episodes.

So everything that follows a rollout is the same in every process, except for the gradient, which they share too.
"""

import time
from dataclasses import replace

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.workers.local import Batch, RolloutWorker, episode_shares, joined, packed
from ollm_rl.decode.turns import Turns
from ollm_rl.errors import UsageError
from ollm_rl.processes import gathered, rank, wait_for_all, world_size


def check_processes(config: RLConfig) -> None:
    """Refuse settings with which several processes cannot train together.

    Raises:
        UsageError: It says what to do instead.
    """
    count = world_size()
    if count == 1:
        return
    if config.policy != "lora":
        what = f"policy={config.policy!r}" if config.agent == "ollm-rl" else f"agent={config.agent!r}"
        remedy = f"start ollm-rl train without a launcher and give workers={count}"
        if config.agent != "ollm-rl":
            remedy = "start ollm-rl train without a launcher"
        raise UsageError(f"{what} learns in one process, and a launcher started {count} (WORLD_SIZE); {remedy}")
    if config.workers:
        raise UsageError(
            f"workers={config.workers} is not used by {count} processes of a launcher, each of which makes its share "
            "of the rollouts; leave it out"
        )
    if count > config.episodes // config.group_size:
        raise UsageError(
            f"{count} processes are more than the {config.episodes // config.group_size} groups of an iteration's "
            "episodes; start fewer"
        )


class SharedRollouts:
    """The `RolloutSource` of one of several processes.

    Args:
        worker: Makes this process's share.
    """

    def __init__(self, worker: RolloutWorker) -> None:
        self.worker = worker
        self.share = episode_shares(worker.config, world_size())[rank()]

    @property
    def turns(self) -> Turns:
        """Turns of the policy on this process's engine."""
        return self.worker.turns

    def collect_iteration(self, iteration: int) -> Batch:
        """Generate this process's share of an iteration's episodes; returns those of all."""
        part = self.worker.collect(iteration, self.share)
        wait_for_all()
        started = time.perf_counter()
        batch = joined(gathered(packed(part)), self.worker.policy.backbone.device)
        return replace(batch, seconds_communication=time.perf_counter() - started)

    def close(self) -> None:
        """Do nothing: nothing was started."""
