"""The trainer, over options or tokens: rollouts, rewards, update, metrics and checkpoints."""

import gc
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.completions import Completion, own_rewarded, write_completions
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.evaluation.free_running import evaluate
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.loading import load_weights, new_policy, trained_weights
from ollm_rl.agents.training.checkpoints import check_history, complete_checkpoint, save_checkpoint
from ollm_rl.agents.training.collapse import collapse_warning
from ollm_rl.agents.training.metrics import episode_metrics
from ollm_rl.agents.training.problems import evaluation_problems, training_problems
from ollm_rl.agents.training.update import Penalties, Updater, learning_rate
from ollm_rl.agents.training.writers import Writers
from ollm_rl.agents.workers.local import RolloutSource, RolloutWorker, episode_shares, settle_heap
from ollm_rl.agents.workers.processes import SharedRollouts, check_processes
from ollm_rl.backbones.loading import context_length, not_finite
from ollm_rl.decode.rollout import Rollout
from ollm_rl.envs.own_rewards import OwnReward, own_rewards
from ollm_rl.errors import RunError, UsageError, one_line
from ollm_rl.files.tensors import load_tensors
from ollm_rl.metrics.measuring import measuring_pool
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.prompts import encode_prompts
from ollm_rl.processes import (
    each_from_first,
    from_first,
    gathered,
    join,
    only_first_speaks,
    rank,
    say,
    take_from_first,
    world_size,
)
from ollm_rl.runs import exclusive_run, intact_checkpoints, last_checkpoint
from ollm_rl.safekeeping.signals import catch_sigterm
from ollm_rl.services.trackers import require_packages
from ollm_rl.settings import expect
from ollm_rl.streams import Purpose, integer_seed, torch_generator

OnIteration = Callable[[dict[str, float]], bool | None]  # gets an iteration's metrics; False stops the run


def train(
    config: RLConfig, on_iteration: OnIteration | None = None, *, functions: Sequence[Callable[..., Any]] = ()
) -> Path:
    """Train a policy, or resume from the checkpoint of the same run.

    Args:
        config: Settings of the run.
        on_iteration: Called after every iteration, once it is saved; the run stops if it returns False.
        functions: Reward functions of one's own that ``config.reward`` names without a file.

    Returns:
        The folder of the run.

    Raises:
        UsageError: If a setting, the data, the folder or the model does not fit; the message says what to change.
        RunError: If a loss, gradient, reward or weight is no longer finite.
    """
    expect(config, RLConfig)
    check_processes(config)
    require_packages(config.report_to)
    device = join(config.device)
    with only_first_speaks():
        _train(config, device, on_iteration, functions)
    return config.out


def _train(
    config: RLConfig,
    device: torch.device,
    on_iteration: OnIteration | None,
    functions: Sequence[Callable[..., Any]],
) -> None:
    own = own_rewards(config.reward, functions)
    problems = training_problems(config)
    if not config.workers:
        measuring_pool(device.type)  # now, since it starts while the model is loaded
    torch.manual_seed(integer_seed(config.seed, Purpose.POLICY_WEIGHTS))
    policy, tokenizer = new_policy(config, device)
    take_from_first(trained_weights(policy).values())
    with closing(build_trainer(config, policy, tokenizer, problems, own)) as trainer, ExitStack() as lock:
        run = exclusive_run(config.out, "train", config)
        from_first(lambda: lock.enter_context(run))
        settle_heap()
        lock.callback(gc.unfreeze)
        trainer.run(on_iteration)


def build_trainer(
    config: RLConfig,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    own: Sequence[OwnReward] = (),
) -> "Trainer":
    """Encode the prompts, create the engine or start the Ray workers, and build the trainer.

    Raises:
        UsageError: As in ``train``.
    """
    held_out = evaluation_problems(config)
    limit, context = config.max_new_tokens, context_length(policy.backbone)
    prompts = encode_prompts([*problems, *held_out], tokenizer, max_length=context, max_new_tokens=limit)
    train_prompts = prompts[: len(problems)]
    source: RolloutSource
    if config.workers:
        from ollm_rl.agents.workers.ray_workers import RayWorkers  # slow to import

        source = RayWorkers(config, policy, problems, train_prompts)
    else:
        longest = max(map(len, prompts)) + limit
        episodes = max(map(len, episode_shares(config, world_size())))
        source = RolloutWorker(config, policy, tokenizer, problems, train_prompts, episodes, max_length=longest)
        if world_size() > 1:
            source = SharedRollouts(source)
    return Trainer(config, policy, tokenizer, source, Updater(policy, config), held_out, own)


class Trainer:
    """State of one run: policy, optimiser, iteration and history.

    Every random number comes from a stream named by seed, purpose and iteration. So the state needs no generators,
    and a resumed run does exactly what the killed one would have done.

    Args:
        config: Settings of the run.
        policy: The policy to train.
        tokenizer: Tokenizer of its backbone.
        source: Generates the rollouts; closed by ``close``.
        updater: Updates the policy.
        held_out: Problems to evaluate on; empty without ``eval_every``.
        own: Reward functions of one's own. They are called in this process, once an iteration with all completions.
    """

    def __init__(
        self,
        config: RLConfig,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        source: RolloutSource,
        updater: Updater,
        held_out: Sequence[Problem] = (),
        own: Sequence[OwnReward] = (),
    ) -> None:
        self.config, self.policy, self.tokenizer = config, policy, tokenizer
        self.source, self.updater, self.held_out, self.own = source, updater, held_out, own
        self.history: list[dict[str, float]] = []

    def run(self, on_iteration: OnIteration | None = None) -> None:
        """Run all remaining iterations; each is saved before the next begins.

        SIGTERM ends the run with exit code 143, once the current iteration is saved.
        """
        self._resume()
        if self.history:
            from_first(self._complete_save)
        bar = tqdm(
            total=self.config.iterations, initial=len(self.history), desc=self.config.out.name, disable=rank() > 0
        )
        with catch_sigterm() as stop_requested, bar, closing(Writers(self.config, self.history)) as writers:
            for row in self.history[-1:]:
                self._log(row, writers)
            while len(self.history) < self.config.iterations and not self._good_enough():
                row = self.iterate()
                self.history.append(row)
                from_first(self._save)
                self._show(row, writers, bar)
                if warning := collapse_warning(self.history):
                    say(f"{self.config.out.name}: {warning}")
                if any(gathered(stop_requested.is_set())):
                    say(f"stopped; iteration {len(self.history)} is saved, the same command resumes")
                    raise SystemExit(128 + signal.SIGTERM)
                if on_iteration is not None and on_iteration(row) is False:
                    break
            if self._good_enough():
                say(self._stopped())

    def close(self) -> None:
        """Stop the workers."""
        self.source.close()

    def iterate(self) -> dict[str, float]:
        """Run one iteration: rollout, update and, if it is due, evaluation; returns its metrics."""
        config, iteration = self.config, len(self.history)
        previous = self.history[-1] if self.history else {"episodes": 0.0, "seconds": 0.0}
        penalties = Penalties.of_iteration(config, previous)
        started = time.perf_counter()
        batch = self.source.collect_iteration(iteration)
        batch = replace(batch, completions=from_first(lambda: self._rewarded(iteration, batch.completions)))
        generated = time.perf_counter()
        if not (batch.rollout.decisions.any() or _has_one_option(batch.rollout)):
            raise UsageError(
                "all options lead to the same token at every position, so there is nothing to choose; "
                "train options with a higher kl_target or more steps"
            )
        generator = torch_generator(config.seed, Purpose.MINIBATCHES, iteration)
        terms = self.updater.run(
            batch.rollout, batch.rewards, iteration=iteration, penalties=penalties, generator=generator
        )
        from_first(lambda: self._check_finite(batch.rewards, terms))
        ended = time.perf_counter()
        row = {
            "iteration": float(iteration),
            "episodes": previous["episodes"] + config.episodes,
            "seconds": previous["seconds"] + ended - started,
            "seconds_rollout": generated - started,
            "seconds_verify": batch.seconds_verify,
            "seconds_communication": batch.seconds_communication,
            "staleness": float(batch.staleness),
            "worker_restarts": float(batch.restarts),
            "seconds_update": ended - generated,
            **episode_metrics(batch, config.group_size),
            **terms,
            **penalties._asdict(),
            "learning_rate": learning_rate(config, iteration),
        }
        if config.replay:
            row["replay_gib"] = self.updater.replay.num_bytes() / 2**30
        if config.eval_every and row["episodes"] // config.eval_every > previous["episodes"] // config.eval_every:
            row |= from_first(self._evaluate)
        return from_first(lambda: row)  # with the first process's times

    def _rewarded(self, iteration: int, completions: Sequence[Completion]) -> list[Completion]:
        """The completions with the rewards of one's own functions; they are written to the run's folder.

        Raises:
            UsageError: If one fails on every completion: there is nothing to learn from.
        """
        completions = own_rewarded(completions, self.own, failure=self.config.failure_reward)
        for one in self.own:
            faults = [completion.faults[one.name] for completion in completions if one.name in completion.faults]
            if len(faults) == len(completions):
                raise UsageError(f"reward {one.name} failed on all {len(faults)} completions ({faults[0]}); correct it")
        write_completions(self.config.out, iteration, completions)
        return completions

    def _check_finite(self, rewards: torch.Tensor, terms: Mapping[str, float]) -> None:
        """End the run, before anything is saved, if the update left numbers that are not finite."""
        values = {"reward": float(rewards.sum()), "grad_norm": terms["grad_norm"], **terms}
        broken = next((name for name, value in values.items() if not math.isfinite(value)), None)
        broken = broken or not_finite(trained_weights(self.policy))
        if broken is None:
            return
        path = last_checkpoint(self.config.out)
        kept = f"the last good checkpoint is {path}" if path else "no checkpoint was saved yet"
        raise RunError(
            f"{broken} is not finite in iteration {len(self.history)}; lower learning_rate="
            f"{self.config.learning_rate:g} or give kl_coef, in another out folder; {kept}"
        )

    def _evaluate(self) -> dict[str, float]:
        """Greedy accuracy on the held-out problems with its interval, and the rates."""
        result = evaluate(
            self.policy,
            self.tokenizer,
            self.held_out,
            max_new_tokens=self.config.max_new_tokens,
            num_slots=self.config.num_slots,
            turns=self.source.turns,
            name=f"{self.config.out.name}, {len(self.history) + 1} iterations",
        )
        names = ("accuracy", "low", "high", "language_switching_rate", "degeneracy_rate", "completion_tokens")
        return {f"eval_{name}": result[name] for name in names}

    def _good_enough(self) -> bool:
        """Whether the last iteration's evaluation reached ``stop_at``."""
        goal = self.config.stop_at
        return goal is not None and any(row.get("eval_accuracy", -1.0) >= goal for row in self.history[-1:])

    def _stopped(self) -> str:
        """Why and where ``stop_at`` ended the run, as one line."""
        row, config = self.history[-1], self.config
        return (
            f"{config.out.name}: accuracy {row['eval_accuracy']:.1%} reached stop_at={config.stop_at:g}; stopped after "
            f"{len(self.history)} of {config.iterations} iterations, {int(row['episodes']):,} episodes"
        )

    def _show(self, row: dict[str, float], writers: Writers, bar: tqdm) -> None:
        """Write an iteration's metrics to TensorBoard or services, and to the progress bar."""
        speed = self._log(row, writers)
        shown = {"reward": "reward", "tokens": "completion_tokens", "entropy": "entropy"}
        bar.set_postfix({name: f"{row[key]:.3g}" for name, key in shown.items()} | {"episodes/s": f"{speed:.0f}"})
        bar.update()

    def _log(self, row: dict[str, float], writers: Writers) -> float:
        """Write an iteration's metrics; returns its episodes per second."""
        speed = self.config.episodes / (row["seconds_rollout"] + row["seconds_update"])
        writers.log(row | {"episodes_per_second": speed})
        return speed

    def _save(self) -> None:
        state = {
            "policy": trained_weights(self.policy),
            "optimizer": self.updater.optimizer.state_dict(),
            "history": self.history,
        }
        if self.config.replay:
            self.updater.replay.save(self.config.out)
        save_checkpoint(self.config.out, state)
        self._complete_save()

    def _complete_save(self) -> None:
        """What follows the writing of a checkpoint; again after a resume, since a kill may have come between."""
        keep = self.config.keep_checkpoints
        complete_checkpoint(self.config.out, self.history, keep=keep)
        if self.config.replay:
            self.updater.replay.prune(self.config.out, keep=keep)

    def _resume(self) -> None:
        """Continue from the newest intact checkpoint whose replay is intact too."""
        fault: UsageError | None = None
        for path in each_from_first(intact_checkpoints(self.config.out)):
            device = self.policy.backbone.device
            state = load_tensors(path, "policy", "optimizer", "history", device=device)
            if self.config.replay:
                try:
                    self.updater.replay.load(self.config.out, len(state["history"]), device)
                except UsageError as error:
                    say(f"{one_line(error)}; trying the checkpoint before {path}")
                    fault = fault or error
                    continue
            check_history(self.config.out, path, state["history"])
            load_weights(self.policy, state["policy"])
            self.updater.optimizer.load_state_dict(state["optimizer"])
            self.history = state["history"]
            return
        if fault is not None:
            raise fault


def _has_one_option(rollout: Rollout) -> bool:
    """Whether the model has one option, a control that leaves nothing to choose."""
    tokens = rollout.stored.get("option_tokens")
    return tokens is not None and tokens.shape[-1] == 1
