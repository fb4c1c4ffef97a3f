"""The one trainer: rollouts, rewards, update, metrics and checkpoints, over options or over tokens alike."""

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.advantages import gae, group_advantages, ppo_loss, reinforce_loss
from ollm_rl.agents.checks import Checked, Checks, write_completions
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.loading import CHECKPOINT_FILE, load_weights, new_policy, trained_weights
from ollm_rl.agents.rollout import Policy, Rollout, collect
from ollm_rl.backbones import context_length
from ollm_rl.devices import resolve_device
from ollm_rl.engine import DecodeEngine
from ollm_rl.metrics import degeneracy_rate, language_switching_rate
from ollm_rl.problems import Problem, load_problems
from ollm_rl.prompts import encode_prompts
from ollm_rl.runs import open_run, write_atomic
from ollm_rl.verify import shared_pool

# Streams of random numbers, apart so that runs of one seed see the same prompts whatever their policy draws.
WEIGHTS, PROMPTS, SAMPLING, SHUFFLING = range(4)


def train(config: RLConfig, on_iteration: Callable[[dict[str, float]], None] | None = None) -> Path:
    """Train a policy, or go on from the checkpoint of the same run.

    Args:
        config: Settings of the run.
        on_iteration: Called with the metrics of every iteration once it is saved.

    Returns:
        The folder of the run.

    Raises:
        ValueError: If a setting, the data or the folder does not fit; the message says what to change.
        FileNotFoundError: If the model is missing.
    """
    device = resolve_device(config.device)
    problems = load_problems(config.data, limit=config.limit, seed=config.seed)
    torch.manual_seed(_seed(config.seed, WEIGHTS))
    policy, tokenizer = new_policy(config, device)
    trainer = Trainer(config, policy, tokenizer, problems)
    open_run(config.out, "train", config)
    trainer.run(on_iteration)
    return config.out


@dataclass(frozen=True)
class Batch:
    """One iteration's episodes: rollout, rewards (N,), what was written, and what checking it added to the time."""

    rollout: Rollout
    rewards: torch.Tensor
    checked: list[Checked]
    seconds_verify: float


class Trainer:
    """State of one run: policy, optimiser, iteration and history.

    Every random number comes from a stream named by seed, purpose and iteration, so the state needs no generators
    and a resumed run repeats what the killed one would have done.
    """

    def __init__(
        self, config: RLConfig, policy: Policy, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]
    ) -> None:
        context = context_length(policy.backbone)
        self.config, self.policy, self.tokenizer, self.problems = config, policy, tokenizer, list(problems)
        self.prompts = encode_prompts(
            self.problems, tokenizer, max_length=context, max_new_tokens=config.max_new_tokens
        )
        longest = max(map(len, self.prompts)) + config.max_new_tokens
        self.engine = DecodeEngine(policy.backbone, min(config.num_slots, config.episodes), longest)
        self.device = policy.backbone.device
        weights = [weight for weight in policy.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(weights, lr=config.learning_rate)
        self.history: list[dict[str, float]] = []

    def run(self, on_iteration: Callable[[dict[str, float]], None] | None = None) -> None:
        """Iterate to the end; every iteration is saved, and told to ``on_iteration``, before the next begins."""
        self._resume()
        done = int(self.history[-1]["episodes"]) if self.history else 0
        writer = SummaryWriter(str(self.config.out), purge_step=done + 1)  # what a kill left beyond the checkpoint goes
        with tqdm(total=self.config.iterations, initial=len(self.history), desc=self.config.out.name) as bar:
            while len(self.history) < self.config.iterations:
                row = self.iterate()
                self.history.append(row)
                self._save()
                for name, value in row.items():
                    writer.add_scalar(_group(name), value, int(row["episodes"]))
                bar.set_postfix(reward=f"{row['reward']:.3f}", tokens=f"{row['completion_tokens']:.0f}")
                bar.update()
                if on_iteration is not None:
                    on_iteration(row)
        writer.close()

    def iterate(self) -> dict[str, float]:
        """One round of rollout and update; returns its metrics."""
        config, iteration = self.config, len(self.history)
        started = time.perf_counter()
        batch = self._rollout(iteration)
        generated = time.perf_counter()
        rollout, rewards = batch.rollout, batch.rewards
        write_completions(config.out, iteration, batch.checked)
        if not rollout.decisions.any():
            raise ValueError(
                "all options lead to the same token at every position, so there is nothing to choose; "
                "train options with a higher kl_target or more steps"
            )
        if config.algorithm == "ppo":
            advantages = gae(
                rewards, rollout.values, rollout.decisions, gamma=config.gamma, gae_lambda=config.gae_lambda
            )
            returns = advantages + rollout.values
            decided = advantages[rollout.decisions]
            advantages = (advantages - decided.mean()) / (decided.std() + 1e-6)
        else:
            advantages = group_advantages(rewards, config.group_size)[:, None].expand_as(rollout.values)
            returns = advantages  # no value head is trained
        losses = self._update(rollout, advantages, returns, iteration)
        ended = time.perf_counter()
        completions = [row.text for row in batch.checked]
        terms = {name: [row.terms[name] for row in batch.checked] for name in batch.checked[0].terms}
        groups = rewards.view(-1, config.group_size)
        correct = torch.tensor(terms["correctness"]).view(-1, config.group_size)
        lengths = rollout.completion_mask.sum(1).float()
        before = self.history[-1] if self.history else {"episodes": 0.0, "seconds": 0.0}
        return {
            "iteration": float(iteration),
            "episodes": before["episodes"] + config.episodes,
            "seconds": before["seconds"] + ended - started,
            "seconds_rollout": generated - started,
            "seconds_verify": batch.seconds_verify,
            "seconds_update": ended - generated,
            "reward": float(rewards.mean()),
            **{f"reward_{name}": sum(values) / len(values) for name, values in terms.items()},
            "verifier_failures": float(sum(row.verdict.failed for row in batch.checked)),
            "completion_tokens": float(lengths.mean()),
            "live_share": float(rollout.decisions.sum() / lengths.sum()),
            "mixed_groups": float((groups.std(1) > 0).float().mean()) if config.group_size > 1 else float("nan"),
            "pass_at_group": float((correct.max(1).values > 0.5).float().mean()),
            "language_switching_rate": language_switching_rate(
                [row.problem.question for row in batch.checked], completions
            ),
            "degeneracy_rate": degeneracy_rate(completions, rollout.terminated.tolist()),
            **losses,
        }

    def _rollout(self, iteration: int) -> Batch:
        """Write a group of completions for each of the next prompts and check their answers."""
        config = self.config
        indices = np.repeat(self._next_problems(iteration), config.group_size)
        checks = Checks([self.problems[index] for index in indices], self.tokenizer, shared_pool())
        rollout = collect(
            self.policy,
            self.engine,
            [self.prompts[index] for index in indices],
            max_new_tokens=config.max_new_tokens,
            end_token=int(self.tokenizer.eos_token_id),
            generator=torch.Generator().manual_seed(_seed(config.seed, SAMPLING, iteration)),
            on_end=checks.begin,
        )
        weights = asdict(config.rewards)
        checked = checks.finish(weights, max_tokens=config.max_new_tokens, failure=config.failure_reward)
        rewards = torch.tensor([row.reward for row in checked], device=self.device)
        return Batch(rollout, rewards, checked, checks.seconds)

    def _next_problems(self, iteration: int) -> np.ndarray:
        """Indices of this iteration's prompts: epoch after epoch, each in an order of its own."""
        count, total = self.config.episodes // self.config.group_size, len(self.problems)
        first = iteration * count
        orders = {
            epoch: np.random.default_rng(np.random.SeedSequence([self.config.seed, PROMPTS, epoch])).permutation(total)
            for epoch in range(first // total, (first + count - 1) // total + 1)
        }
        return np.array([orders[place // total][place % total] for place in range(first, first + count)])

    def _update(
        self, rollout: Rollout, advantages: torch.Tensor, returns: torch.Tensor, iteration: int
    ) -> dict[str, float]:
        """Optimise over all episodes; returns the mean of every term."""
        config = self.config
        shuffler = torch.Generator().manual_seed(_seed(config.seed, SHUFFLING, iteration))
        sums: dict[str, float] = {}
        steps = 0
        for _ in range(config.epochs):
            order = torch.randperm(config.episodes, generator=shuffler)
            for rows in order.tensor_split(config.minibatches):
                terms = self._step(rollout, rows, advantages, returns)
                sums = {name: sums.get(name, 0.0) + value for name, value in terms.items()}
                steps += 1
        return {name: value / steps for name, value in sums.items()}

    def _step(
        self, rollout: Rollout, rows: torch.Tensor, advantages: torch.Tensor, returns: torch.Tensor
    ) -> dict[str, float]:
        """One optimiser step on some episodes, the gradient gathered over micro-batches of like length."""
        config = self.config
        rows = rows[rollout.completion_mask.sum(1).cpu()[rows].argsort()].to(self.device)
        total = max(1, int(rollout.decisions[rows].sum()))
        terms: dict[str, float] = dict.fromkeys(
            ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"), 0.0
        )
        self.optimizer.zero_grad()
        for part in rows.split(config.micro_batch):
            episodes = rollout.take(part)
            count = int(episodes.decisions.sum())
            if not count:
                continue
            width = episodes.tokens.shape[1]
            decided = episodes.decisions
            now = self.policy.evaluate(episodes)
            log_ratio = now.log_probs - episodes.log_probs[decided]
            gain = advantages[part, :width][decided]
            value_loss = torch.zeros((), device=self.device)
            if config.algorithm == "ppo":
                policy_loss = ppo_loss(log_ratio, gain, config.clip_range)
                value_loss = (now.values - returns[part, :width][decided]).square().mean()
            else:
                policy_loss = reinforce_loss(log_ratio, gain)
            entropy = now.entropies.mean()
            share = count / total
            loss = policy_loss + config.vf_coef * value_loss - config.ent_coef * entropy
            (share * loss).backward()
            measured = {
                "policy_loss": policy_loss,
                "value_loss": value_loss,
                "entropy": entropy,
                "approx_kl": (log_ratio.exp() - 1 - log_ratio).mean(),
                "clip_fraction": ((log_ratio.exp() - 1).abs() > config.clip_range).float().mean(),
            }
            terms = {name: terms[name] + share * float(value.detach()) for name, value in measured.items()}
        torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], config.max_grad_norm)
        self.optimizer.step()
        return terms

    def _save(self) -> None:
        """Write the checkpoint, then the history for people and reports, each atomically."""
        buffer = io.BytesIO()
        state = {
            "policy": trained_weights(self.policy),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }
        torch.save(state, buffer)
        write_atomic(self.config.out / CHECKPOINT_FILE, buffer.getvalue())
        write_atomic(self.config.out / "metrics.json", json.dumps(self.history, indent=1))

    def _resume(self) -> None:
        path = self.config.out / CHECKPOINT_FILE
        if path.exists():
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            load_weights(self.policy, state["policy"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.history = state["history"]


def completion_texts(rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What was written, without special tokens."""
    rows = zip(rollout.tokens.tolist(), rollout.completion_mask.sum(1).tolist(), strict=True)
    texts: list[str] = tokenizer.batch_decode([row[:length] for row, length in rows], skip_special_tokens=True)
    return texts


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _group(name: str) -> str:
    """TensorBoard's name of a metric, in SB3's groups."""
    if name.startswith("seconds") or name in ("iteration", "episodes"):
        return f"time/{name}"
    train = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
    return f"train/{name}" if name in train else f"rollout/{name}"
