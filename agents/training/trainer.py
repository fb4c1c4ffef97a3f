"""The one trainer: rollouts, rewards, update, metrics and checkpoints, over options or over tokens alike."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.completions import checked_metrics, write_completions
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.evaluation.free_running import evaluate
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.loading import load_weights, new_policy, trained_weights
from ollm_rl.agents.training.checkpoints import last_checkpoint, save_checkpoint
from ollm_rl.agents.training.update import Updater, steered
from ollm_rl.agents.workers.local import Batch, RolloutWorker
from ollm_rl.backbones.loading import context_length
from ollm_rl.devices import resolve_device
from ollm_rl.errors import UsageError
from ollm_rl.problems.prompts import encode_prompts
from ollm_rl.problems.sources import Problem, load_problems
from ollm_rl.runs import open_run
from ollm_rl.streams import SHUFFLING, WEIGHTS, stream_seed

if TYPE_CHECKING:
    from ollm_rl.agents.workers.ray_workers import RayWorkers

OnIteration = Callable[[dict[str, float]], bool | None]  # gets an iteration's metrics; False stops the run


def train(config: RLConfig, on_iteration: OnIteration | None = None) -> Path:
    """Train a policy, or go on from the checkpoint of the same run.

    Args:
        config: Of the run.
        on_iteration: Called after every iteration, once it is saved; the run stops where it returns False.

    Returns:
        The folder of the run.

    Raises:
        UsageError: If a setting, the data or the folder does not fit; the message says what to change.
        MissingError: If the model is missing.
    """
    device = resolve_device(config.device)
    problems = load_problems(config.data, limit=config.limit, seed=config.seed)
    torch.manual_seed(stream_seed(config.seed, WEIGHTS))
    policy, tokenizer = new_policy(config, device)
    trainer = Trainer(config, policy, tokenizer, problems)
    try:
        open_run(config.out, "train", config)
        trainer.run(on_iteration)
    finally:
        trainer.close()
    return config.out


def evaluation_problems(config: RLConfig) -> list[Problem]:
    """The problems that a run is evaluated on; none without ``eval_every``.

    Raises:
        UsageError: If they would be those it is trained on.
    """
    if config.eval_every is None:
        return []
    source = config.eval_data or config.data
    if config.eval_data is None and source.startswith("jsonl:"):
        raise UsageError(f"eval_every={config.eval_every} would evaluate on the training problems; give eval_data")
    return load_problems(source, split="validation", limit=config.eval_limit, seed=config.seed)


class Trainer:
    """State of one run: policy, optimiser, iteration and history.

    Every random number comes from a stream named by seed, purpose and iteration, so the state needs no generators
    and a resumed run repeats what the killed one would have done.
    """

    def __init__(
        self, config: RLConfig, policy: Policy, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]
    ) -> None:
        self.config, self.policy, self.tokenizer, self.problems = config, policy, tokenizer, list(problems)
        self.held_out = evaluation_problems(config)
        self.prompts = self._encode(self.problems)
        asked = self._encode(self.held_out) if self.held_out else []
        self.longest = max(map(len, [*self.prompts, *asked])) + config.max_new_tokens
        self.workers = self._new_workers()
        self.device = policy.backbone.device
        self.updater = Updater(policy, config)
        self.history: list[dict[str, float]] = []

    def run(self, on_iteration: OnIteration | None = None) -> None:
        """Iterate to the end; every iteration is saved before the next begins.

        SIGTERM ends the run with exit code 143, once the iteration at hand is saved.
        """
        self._resume()
        done = int(self.history[-1]["episodes"]) if self.history else 0
        bar = tqdm(total=self.config.iterations, initial=len(self.history), desc=self.config.out.name)
        # What a kill left beyond the checkpoint goes.
        writer = SummaryWriter(str(self.config.out), purge_step=done + 1)
        with terminable() as told, bar, writer:
            while len(self.history) < self.config.iterations and not self._good_enough():
                row = self.iterate()
                self.history.append(row)
                self._save()
                speed = self.config.episodes / (row["seconds_rollout"] + row["seconds_update"])
                for name, value in (row | {"episodes_per_second": speed}).items():
                    writer.add_scalar(_group(name), value, int(row["episodes"]))
                shown = {"reward": "reward", "tokens": "completion_tokens", "entropy": "entropy"}
                bar.set_postfix(
                    {name: f"{row[key]:.3g}" for name, key in shown.items()} | {"episodes/s": f"{speed:.0f}"}
                )
                bar.update()
                if told.is_set():
                    print(f"stopped; iteration {len(self.history)} is saved, the same command goes on", file=sys.stderr)
                    raise SystemExit(128 + signal.SIGTERM)
                if on_iteration is not None and on_iteration(row) is False:
                    break

    def close(self) -> None:
        """End the workers."""
        if not isinstance(self.workers, RolloutWorker):
            self.workers.close()

    def iterate(self) -> dict[str, float]:
        """One round of rollout, update and, where it is due, evaluation; returns its metrics."""
        config, iteration = self.config, len(self.history)
        before = self.history[-1] if self.history else {"episodes": 0.0, "seconds": 0.0}
        ent_coef = config.ent_coef
        if self.history:
            ent_coef = steered(before["ent_coef"], before["entropy"], config.target_entropy)
        started = time.perf_counter()
        batch = self._rollout(iteration)
        write_completions(config.out, iteration, batch.checked)
        generated = time.perf_counter()
        if not batch.rollout.decisions.any():
            raise UsageError(
                "all options lead to the same token at every position, so there is nothing to choose; "
                "train options with a higher kl_target or more steps"
            )
        shuffler = torch.Generator().manual_seed(stream_seed(config.seed, SHUFFLING, iteration))
        terms = self.updater.run(batch.rollout, batch.rewards, ent_coef=ent_coef, shuffler=shuffler)
        ended = time.perf_counter()
        row = {
            "iteration": float(iteration),
            "episodes": before["episodes"] + config.episodes,
            "seconds": before["seconds"] + ended - started,
            "seconds_rollout": generated - started,
            "seconds_verify": batch.seconds_verify,
            "seconds_communication": batch.seconds_communication,
            "staleness": float(batch.staleness),
            "worker_restarts": float(batch.restarts),
            "seconds_update": ended - generated,
            **episode_metrics(batch, config.group_size),
            **terms,
            "ent_coef": ent_coef,
        }
        if config.eval_every and row["episodes"] // config.eval_every > before["episodes"] // config.eval_every:
            row |= self._evaluate()
        return row

    def _evaluate(self) -> dict[str, float]:
        """Greedy accuracy on the problems held out, with its interval, and the rates beside it."""
        result = evaluate(
            self.policy,
            self.tokenizer,
            self.held_out,
            max_new_tokens=self.config.max_new_tokens,
            num_slots=self.config.num_slots,
            engine=self.workers.engine if isinstance(self.workers, RolloutWorker) else None,
            name=f"{self.config.out.name}, {len(self.history) + 1} iterations",
        )
        names = ("accuracy", "low", "high", "language_switching_rate", "degeneracy_rate", "completion_tokens")
        return {f"eval_{name}": result[name] for name in names}

    def _good_enough(self) -> bool:
        """Whether the last evaluation reached the accuracy to stop at."""
        goal = self.config.stop_at
        return goal is not None and any(row.get("eval_accuracy", -1.0) >= goal for row in self.history[-1:])

    def _encode(self, problems: Sequence[Problem]) -> list[list[int]]:
        limit = self.config.max_new_tokens
        context = context_length(self.policy.backbone)
        return encode_prompts(problems, self.tokenizer, max_length=context, max_new_tokens=limit)

    def _new_workers(self) -> "RolloutWorker | RayWorkers":
        config = self.config
        if not config.workers:
            data = (self.policy, self.tokenizer, self.problems, self.prompts)
            return RolloutWorker(config, *data, config.episodes, max_length=self.longest)
        from ollm_rl.agents.workers.ray_workers import RayWorkers  # without workers nobody waits for this import

        return RayWorkers(config, self.problems, self.prompts)

    def _rollout(self, iteration: int) -> Batch:
        """Write a group of completions for each of the next prompts and check their answers."""
        if isinstance(self.workers, RolloutWorker):
            return self.workers.collect(iteration, range(self.config.episodes))
        batch = self.workers.collect(iteration, trained_weights(self.policy))
        return replace(batch, rollout=batch.rollout.to(self.device))

    def _save(self) -> None:
        state = {
            "policy": trained_weights(self.policy),
            "optimizer": self.updater.optimizer.state_dict(),
            "history": self.history,
        }
        save_checkpoint(self.config.out, state, keep=self.config.keep_checkpoints)

    def _resume(self) -> None:
        path = last_checkpoint(self.config.out)
        if path is not None:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            load_weights(self.policy, state["policy"])
            self.updater.optimizer.load_state_dict(state["optimizer"])
            self.history = state["history"]


def episode_metrics(batch: Batch, group_size: int) -> dict[str, float]:
    """What the episodes say by themselves; of groups, the episodes of one prompt side by side."""
    rollout, groups = batch.rollout, batch.rewards.view(-1, group_size)
    correct = torch.tensor([row.terms["correctness"] for row in batch.checked]).view(-1, group_size)
    return {
        **checked_metrics(batch.checked, rollout.terminated.tolist()),
        "live_share": float(rollout.decisions.sum() / rollout.completion_mask.sum()),
        "mixed_groups": float((groups.std(1) > 0).float().mean()) if group_size > 1 else float("nan"),
        "pass_at_group": float((correct.max(1).values > 0.5).float().mean()),
    }


@contextmanager
def terminable() -> Iterator[threading.Event]:
    """Set at the first SIGTERM; the second one kills, as it would have. In threads, which get no signals, never set."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def tell(*_: object) -> None:
        told.set()
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def _group(name: str) -> str:
    """TensorBoard's name of a metric, in SB3's groups."""
    if name.startswith("eval_"):
        return f"eval/{name.removeprefix('eval_')}"
    if name.startswith("seconds") or name in ("iteration", "episodes", "episodes_per_second", "worker_restarts"):
        return f"time/{name}"
    train = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "kl", "ent_coef")
    return f"train/{name}" if name in train else f"rollout/{name}"
