"""Rollout workers as Ray actors: they get the policy's weights, and give back checked episodes.

Each worker runs a fixed share of every iteration's episodes, so equal seeds and equal numbers of workers give equal
curves, whatever dies: a worker that is replaced does the same share once more, from the same random numbers. With a
staleness of N the learner asks for N iterations ahead, and so iteration i comes from the weights before update i - N.
"""

import os
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray
import torch

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.loading import load_weights, new_policy, trained_weights
from ollm_rl.agents.workers.cluster import check_resources, connect
from ollm_rl.agents.workers.local import Batch, RolloutWorker, WorkerError
from ollm_rl.decode.rollout import Rollout
from ollm_rl.decode.turns import Turns
from ollm_rl.errors import one_line
from ollm_rl.problems.sources import Problem

ATTEMPTS = 5  # at the same episodes, by one worker after another


@dataclass(frozen=True)
class Failure:
    """An exception within a worker: its last line, its traceback, and whether memory ran out."""

    line: str
    traceback: str
    out_of_memory: bool


def build_worker(
    config: RLConfig, problems: Sequence[Problem], prompts: Sequence[list[int]], episodes: int
) -> RolloutWorker:
    """Load policy and backbone in the process of a worker."""
    policy, tokenizer = new_policy(config, torch.device("cuda" if config.gpus_per_worker else "cpu"))
    return RolloutWorker(config, policy, tokenizer, problems, prompts, episodes)


class RolloutActor:
    """A `RolloutWorker` in a process of its own; it is built at the first call, so that errors in that are results.

    Args:
        build: `build_worker` or a stand-in.
        data: Its arguments but the last, the same for all workers.
        episodes: The last.
        folder: Where relative paths in the settings begin, if there is such a folder on this machine.
    """

    def __init__(self, build: Callable[..., RolloutWorker], data: tuple[Any, ...], episodes: int, folder: str) -> None:
        self.build = partial(build, *data, episodes)
        self.worker: RolloutWorker | None = None
        if os.path.isdir(folder):
            os.chdir(folder)

    def collect(self, weights: dict[str, torch.Tensor], iteration: int, episodes: range) -> Batch | Failure:
        """`RolloutWorker.collect` under these weights, on the CPU."""
        try:
            if self.worker is None:
                self.worker = self.build()
            load_weights(self.worker.policy, weights)
            batch = self.worker.collect(iteration, episodes)
            return replace(batch, rollout=batch.rollout.to("cpu"))
        except Exception as error:
            line = one_line(traceback.format_exception_only(error)[-1])
            spent = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in line
            return Failure(line, traceback.format_exc(), spent)


@dataclass
class _Task:
    """A share of one iteration, asked for with the weights that so many updates have made."""

    iteration: int
    version: int
    weights: ray.ObjectRef
    result: ray.ObjectRef


class _Seat:
    """A worker's place: its share of the episodes, the actor that has it now, and what was asked of it."""

    def __init__(self, number: int, episodes: range, start: Callable[[], Any]) -> None:
        self.number, self.episodes, self._start = number, episodes, start
        self.tasks: deque[_Task] = deque()
        self.losses = 0  # of workers in a row, over the first task
        self.restarts = 0
        self.actor = start()

    def ask(self, iteration: int, version: int, weights: ray.ObjectRef) -> None:
        result = self.actor.collect.remote(weights, iteration, self.episodes)
        self.tasks.append(_Task(iteration, version, weights, result))

    def result(self) -> Batch | None:
        """What the first task gave; None if the worker was lost over it and replaced.

        Raises:
            WorkerError: If it raised an exception, or too many workers were lost over it.
        """
        task = self.tasks[0]
        try:
            outcome: Batch | Failure = ray.get(task.result)
        except ray.exceptions.RayTaskError as error:
            outcome = Failure(f"{type(error.cause).__name__}: {error.cause}", str(error), False)
        except ray.exceptions.RayError as error:
            self.replace(f"{type(error).__name__}: {str(error).splitlines()[0]}")
            return None
        if isinstance(outcome, Batch):
            self.tasks.popleft()
            self.losses = 0
            return replace(outcome, staleness=task.iteration - task.version)
        if outcome.out_of_memory:
            self.replace(outcome.line)
            return None
        raise WorkerError(
            f"worker {self.number} failed in iteration {task.iteration}: {outcome.line}\n"
            f"In the worker:\n{outcome.traceback.rstrip()}"
        )

    def replace(self, reason: str) -> None:
        """Put a new worker in the lost one's place and ask it for all that is missing."""
        ray.kill(self.actor)
        self.losses += 1
        self.restarts += 1
        if self.losses == ATTEMPTS:
            raise WorkerError(
                f"worker {self.number} was lost {ATTEMPTS} times in a row over episodes {self.episodes.start} to "
                f"{self.episodes.stop - 1} of iteration {self.tasks[0].iteration}; the last time: {reason}"
            )
        warnings.warn(
            f"worker {self.number} was lost ({reason}); another takes its place", RuntimeWarning, stacklevel=3
        )
        self.actor = self._start()
        missing = list(self.tasks)
        self.tasks.clear()
        for task in missing:
            self.ask(task.iteration, task.version, task.weights)


class RayWorkers:
    """The workers of one run, as the trainer's `RolloutSource`.

    Args:
        config: Of the run.
        policy: The learner's; its weights go out once an iteration.
        problems: All of the run.
        prompts: Token ids of each.

    Raises:
        ValueError: If Ray is not to be had, or too small for the workers.
    """

    turns: Turns | None = None

    def __init__(
        self, config: RLConfig, policy: Policy, problems: Sequence[Problem], prompts: Sequence[list[int]]
    ) -> None:
        self.config, self.policy = config, policy
        self._connected = connect(config.ray_address)
        self._seats: list[_Seat] = []
        self._asked = 0  # iterations before this one have been asked for
        try:
            check_resources(config.workers, config.gpus_per_worker)
        except ValueError:
            self.close()
            raise
        size = config.group_size
        groups = np.array_split(np.arange(config.episodes // size), config.workers)
        shares = [range(int(part[0]) * size, (int(part[-1]) + 1) * size) for part in groups]
        actor: Any = ray.remote(RolloutActor)
        actor = actor.options(num_cpus=1, num_gpus=config.gpus_per_worker)
        data = ray.put((config, problems, prompts))
        self._seats = [
            _Seat(number, share, partial(actor.remote, build_worker, data, len(share), os.getcwd()))
            for number, share in enumerate(shares)
        ]

    def collect_iteration(self, iteration: int) -> Batch:
        """All episodes of an iteration, on the policy's device.

        Args:
            iteration: One after the other; the first may be any. So many updates have made the policy what it is.

        Raises:
            WorkerError: If a worker raised an exception, or was lost too often at one place.
        """
        started = time.perf_counter()
        self._ask(iteration, trained_weights(self.policy))
        seconds = time.perf_counter() - started
        restarts = sum(seat.restarts for seat in self._seats)
        parts: dict[int, Batch] = {}
        waiting = {seat: time.monotonic() for seat in self._seats}  # and since when
        while waiting:
            results = {seat.tasks[0].result: seat for seat in waiting}
            patience = min(waiting.values()) + self.config.worker_timeout - time.monotonic()
            ready, _ = ray.wait(list(results), timeout=max(0.0, patience))
            started = time.perf_counter()
            for result in ready:
                seat = results[result]
                part = seat.result()
                if part is None:
                    waiting[seat] = time.monotonic()
                else:
                    parts[seat.number] = part
                    del waiting[seat]
            if not ready:
                self._replace_overdue(waiting)
            seconds += time.perf_counter() - started
        started = time.perf_counter()
        batch = _join([parts[seat.number] for seat in self._seats], self.policy.backbone.device)
        assert 0 <= batch.staleness <= self.config.async_staleness
        seconds += time.perf_counter() - started
        restarts = sum(seat.restarts for seat in self._seats) - restarts
        return replace(batch, seconds_communication=seconds, restarts=restarts)

    def close(self) -> None:
        """End the workers, and Ray too if it was started for them."""
        for seat in self._seats:
            ray.kill(seat.actor)
        if self._connected:
            ray.shutdown()

    def _ask(self, iteration: int, weights: dict[str, torch.Tensor]) -> None:
        """Ask all workers for the iterations that these weights may make and nobody has asked for."""
        last = min(iteration + self.config.async_staleness, self.config.iterations - 1)
        missing = range(max(iteration, self._asked), last + 1)
        if missing:
            sent = ray.put({name: weight.cpu() for name, weight in weights.items()})
            for ahead in missing:
                for seat in self._seats:
                    seat.ask(ahead, iteration, sent)
            self._asked = last + 1

    def _replace_overdue(self, waiting: dict[_Seat, float]) -> None:
        limit = self.config.worker_timeout
        for seat, since in waiting.items():
            if time.monotonic() - since >= limit:
                seat.replace(f"no answer within worker_timeout={limit:g} seconds")
                waiting[seat] = time.monotonic()


def _join(parts: Sequence[Batch], device: torch.device) -> Batch:
    (staleness,) = {part.staleness for part in parts}
    return Batch(
        rollout=Rollout.join([part.rollout for part in parts]).to(device),
        completions=[one for part in parts for one in part.completions],
        seconds_verify=max(part.seconds_verify for part in parts),
        staleness=staleness,
    )
