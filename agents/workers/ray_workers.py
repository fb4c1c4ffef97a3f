"""Rollout workers as Ray actors: they receive the policy's weights and return checked episodes.

Each worker runs a fixed share of every iteration's episodes. A worker that replaces a lost one runs the same share
again with the same random numbers. So equal seeds and equal numbers of workers give equal curves, even if workers die.
With a staleness of N the learner requests N iterations ahead: iteration i uses the weights from before update i - N.
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

import torch

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.loading import load_weights, new_policy, trained_weights
from ollm_rl.agents.workers.cluster import check_resources, connect
from ollm_rl.agents.workers.local import (
    Batch,
    RolloutWorker,
    WorkerError,
    episode_shares,
    joined,
    packed,
    settle_heap,
)
from ollm_rl.decode.turns import Turns
from ollm_rl.errors import RunWarning, UsageError, extra, one_line
from ollm_rl.metrics.measuring import measuring_pool
from ollm_rl.problems.problem import Problem

with extra("ray"):
    import ray

ATTEMPTS = 5  # at the same episodes, each by a new worker


@dataclass(frozen=True)
class Failure:
    """An exception in a worker: its last line, its traceback, and whether memory ran out."""

    line: str
    traceback: str
    out_of_memory: bool


def build_worker(
    config: RLConfig, problems: Sequence[Problem], prompts: Sequence[list[int]], episodes: int
) -> RolloutWorker:
    """Load policy and backbone in a worker's process."""
    device = torch.device("cuda" if config.gpus_per_worker else "cpu")
    measuring_pool(device.type)  # now, since it starts while the model is loaded
    policy, tokenizer = new_policy(config, device)
    return RolloutWorker(config, policy, tokenizer, problems, prompts, episodes)


class RolloutActor:
    """A `RolloutWorker` in its own process, built at the first call so that errors in building it become results.

    Args:
        build: `build_worker` or a stand-in.
        data: All arguments of ``build`` except the last; the same for all workers.
        episodes: The last argument of ``build``.
        folder: Base of relative paths in the settings, if there is such a folder on this machine.
    """

    def __init__(self, build: Callable[..., RolloutWorker], data: tuple[Any, ...], episodes: int, folder: str) -> None:
        self.build = partial(build, *data, episodes)
        self.worker: RolloutWorker | None = None
        if os.path.isdir(folder):
            os.chdir(folder)

    def collect(self, weights: dict[str, torch.Tensor], iteration: int, episodes: range) -> Batch | Failure:
        """`RolloutWorker.collect` with these weights; the batch is on the CPU."""
        try:
            if self.worker is None:
                self.worker = self.build()
                settle_heap()
            load_weights(self.worker.policy, weights)
            return packed(self.worker.collect(iteration, episodes))
        except Exception as error:
            line = one_line(traceback.format_exception_only(error)[-1])
            out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in line
            return Failure(line, traceback.format_exc(), out_of_memory)


@dataclass
class _Task:
    """A share of one iteration, requested with the weights after ``version`` updates."""

    iteration: int
    version: int
    weights: ray.ObjectRef
    result: ray.ObjectRef


class _Seat:
    """A fixed share of the episodes, the actor that runs it now, and the actor's pending tasks."""

    def __init__(self, number: int, episodes: range, start: Callable[[], Any]) -> None:
        self.number, self.episodes, self._start = number, episodes, start
        self.tasks: deque[_Task] = deque()
        self.losses = 0  # workers lost in a row over the first task
        self.restarts = 0
        self.actor = start()

    def request(self, iteration: int, version: int, weights: ray.ObjectRef) -> None:
        result = self.actor.collect.remote(weights, iteration, self.episodes)
        self.tasks.append(_Task(iteration, version, weights, result))

    def result(self) -> Batch | None:
        """Result of the first task; None if the worker was lost over it and replaced.

        Raises:
            WorkerError: If the task raised an exception, or too many workers were lost over it.
        """
        task = self.tasks[0]
        try:
            outcome: Batch | Failure = ray.get(task.result)
        except ray.exceptions.RayTaskError as error:
            outcome = Failure(f"{type(error.cause).__name__}: {error.cause}", str(error), False)
        except ray.exceptions.RayError as error:
            first_line = str(error).strip().partition("\n")[0]
            self.replace(f"{type(error).__name__}: {first_line}")
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
        """Replace the lost worker and request all missing tasks from the new one."""
        ray.kill(self.actor)
        self.losses += 1
        self.restarts += 1
        if self.losses == ATTEMPTS:
            raise WorkerError(
                f"worker {self.number} was lost {ATTEMPTS} times in a row over episodes {self.episodes.start} to "
                f"{self.episodes.stop - 1} of iteration {self.tasks[0].iteration}; the last time: {reason}"
            )
        warnings.warn(f"worker {self.number} was lost ({reason}); another takes its place", RunWarning, stacklevel=3)
        self.actor = self._start()
        missing = list(self.tasks)
        self.tasks.clear()
        for task in missing:
            self.request(task.iteration, task.version, task.weights)


class RayWorkers:
    """The workers of one run, as the trainer's `RolloutSource`.

    Args:
        config: Settings of the run.
        policy: The learner's policy; its weights are sent once per iteration.
        problems: All problems of the run.
        prompts: Token ids of each problem's prompt.

    Raises:
        UsageError: If no cluster answers, or it is too small for the workers.
    """

    turns: Turns | None = None

    def __init__(
        self, config: RLConfig, policy: Policy, problems: Sequence[Problem], prompts: Sequence[list[int]]
    ) -> None:
        self.config, self.policy = config, policy
        self._connected = connect(config.ray_address)
        self._seats: list[_Seat] = []
        self._next_request = 0  # the first iteration that has not been requested
        try:
            check_resources(config.workers, config.gpus_per_worker)
        except UsageError:
            self.close()
            raise
        actor: Any = ray.remote(RolloutActor)
        actor = actor.options(num_cpus=1, num_gpus=config.gpus_per_worker)
        data = ray.put((config, problems, prompts))
        self._seats = [
            _Seat(number, share, partial(actor.remote, build_worker, data, len(share), os.getcwd()))
            for number, share in enumerate(episode_shares(config, config.workers))
        ]

    def collect_iteration(self, iteration: int) -> Batch:
        """Generate all episodes of an iteration; they are on the policy's device.

        Args:
            iteration: Number of updates of the policy so far. It grows by 1 from call to call; the first may be any.

        Raises:
            WorkerError: If a worker raised an exception, or was lost too often over the same episodes.
        """
        started = time.perf_counter()
        self._request(iteration, trained_weights(self.policy))
        seconds = time.perf_counter() - started
        restarts = sum(seat.restarts for seat in self._seats)
        parts, device = dict[int, Batch](), self.policy.backbone.device
        waiting = {seat: time.monotonic() for seat in self._seats}  # those without a result, and since when
        while waiting:
            results = {seat.tasks[0].result: seat for seat in waiting}
            timeout = min(waiting.values()) + self.config.worker_timeout - time.monotonic()
            ready, _ = ray.wait(list(results), timeout=max(0.0, timeout))
            started = time.perf_counter()
            for result in ready:
                seat = results[result]
                part = seat.result()
                if part is None:
                    waiting[seat] = time.monotonic()
                else:
                    # Moved while the others are still at work.
                    parts[seat.number] = replace(part, rollout=part.rollout.to(device))
                    del waiting[seat]
            if not ready:
                self._replace_overdue(waiting)
            seconds += time.perf_counter() - started
        started = time.perf_counter()
        batch = joined([parts[seat.number] for seat in self._seats], device)
        assert 0 <= batch.staleness <= self.config.async_staleness
        seconds += time.perf_counter() - started
        restarts = sum(seat.restarts for seat in self._seats) - restarts
        return replace(batch, seconds_communication=seconds, restarts=restarts)

    def close(self) -> None:
        """Stop the workers, and disconnect from Ray if it was connected for them."""
        for seat in self._seats:
            ray.kill(seat.actor)
        if self._connected:
            ray.shutdown()

    def _request(self, iteration: int, weights: dict[str, torch.Tensor]) -> None:
        """Request all iterations that may use these weights and have not been requested yet."""
        last = min(iteration + self.config.async_staleness, self.config.iterations - 1)
        missing = range(max(iteration, self._next_request), last + 1)
        if missing:
            weights_ref = ray.put({name: weight.cpu() for name, weight in weights.items()})
            for number in missing:
                for seat in self._seats:
                    seat.request(number, iteration, weights_ref)
            self._next_request = last + 1

    def _replace_overdue(self, waiting: dict[_Seat, float]) -> None:
        limit = self.config.worker_timeout
        for seat, since in waiting.items():
            if time.monotonic() - since >= limit:
                seat.replace(f"no answer within worker_timeout={limit:g} seconds")
                waiting[seat] = time.monotonic()
