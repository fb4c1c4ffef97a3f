"""Seconds and peak memory of a training iteration of several methods in one run.

python -m ollm_rl.experiments.bench.train --model OPTIONS --data SOURCE --json FILE

The methods are our latent and vocabulary PPO and REINFORCE, PPO of stable-baselines3 on the environment, and GRPO of
TRL (`pip install trl`; left out if missing) on the same backbone, LoRA, prompts, group size and number of optimiser
steps. An iteration of every method writes, checks and learns from the same number of episodes. The methods take turns,
round by round. The first iteration of each warms up and does not count.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.loading import new_policy
from ollm_rl.agents.training.trainer import build_trainer
from ollm_rl.answers.pool import shared_pool
from ollm_rl.backbones.loading import load_backbone
from ollm_rl.backbones.lora import lora_config
from ollm_rl.backbones.names import resolve
from ollm_rl.devices import resolve_device
from ollm_rl.envs.sb3 import TextGenVecEnv
from ollm_rl.envs.vector import TextGenVectorEnv
from ollm_rl.experiments.bench.sft import PeakMemory
from ollm_rl.experiments.script import positive, start
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.prompts import encode_prompts
from ollm_rl.problems.sources import load_problems
from ollm_rl.runs import origin, write_atomic

Seconds = dict[str, float]  # seconds of one iteration: generation, verification, update, total
CONTENDERS = ("latent-ppo", "latent-reinforce", "vocab-ppo", "vocab-reinforce", "sb3-ppo", "trl-grpo")


class Ours:
    """Our trainer with one of its algorithms and action spaces."""

    def __init__(self, name: str, config: RLConfig, problems: list[Problem]) -> None:
        space, _, algorithm = name.partition("-")
        settings: Any = {"action_space": "tokens", "policy": "lora", "algorithm": algorithm}
        if space == "latent":
            settings |= {"action_space": "options", "policy": "latent"}
        config = RLConfig(**{**vars(config), **settings, "out": config.out / name})
        policy, tokenizer = new_policy(config, resolve_device(config.device))
        self.trainer = build_trainer(config, policy, tokenizer, problems)

    def __call__(self) -> Seconds:
        """Run one iteration."""
        row = self.trainer.iterate()
        self.trainer.history.append(row)
        generation = row["seconds_rollout"] - row["seconds_verify"]
        return {
            "generation": generation,
            "verification": row["seconds_verify"],
            "update": row["seconds_update"],
            "total": row["seconds_rollout"] + row["seconds_update"],
        }


class EndedEpisodes(BaseCallback):
    """Counts the episodes that have ended."""

    ended = 0

    def _on_step(self) -> bool:
        self.ended += int(self.locals["dones"].sum())
        return True


class StableBaselines:
    """PPO of stable-baselines3 on the adapter. It checks answers within a step, so generation includes this time."""

    def __init__(self, config: RLConfig, problems: list[Problem]) -> None:
        device, slots = resolve_device(config.device), min(config.num_slots, config.episodes)
        model = OptionModel.from_pretrained(config.model, dtype=getattr(torch, config.dtype), device=device)
        envs = TextGenVectorEnv(slots, model, problems, max_new_tokens=config.max_new_tokens, autoreset_mode="SameStep")
        self.episodes, self.steps = config.episodes, slots * config.max_new_tokens
        self.agent = PPO(
            "MlpPolicy",
            TextGenVecEnv(envs),
            n_steps=config.max_new_tokens,
            batch_size=self.steps // config.minibatches,
            n_epochs=config.epochs,
            learning_rate=config.learning_rate,
            seed=config.seed,
            device=device,
        )

    def __call__(self) -> Seconds:
        """Fill and learn from one buffer; the time is scaled to the episodes of an iteration."""
        update, learn = 0.0, self.agent.train

        def timed() -> None:
            nonlocal update
            started = time.perf_counter()
            learn()
            update += time.perf_counter() - started

        count = EndedEpisodes()
        started = time.perf_counter()
        self.agent.train = timed  # type: ignore[method-assign]
        self.agent.learn(self.steps, callback=count, reset_num_timesteps=False)
        total, self.agent.train = time.perf_counter() - started, learn  # type: ignore[method-assign]
        scale = self.episodes / count.ended
        parts = {"generation": total - update, "verification": 0.0, "update": update, "total": total}
        return {name: scale * seconds for name, seconds in parts.items()}


def grpo_config(config: RLConfig, iterations: int, device: torch.device) -> Any:
    """Our settings as TRL's ``GRPOConfig``."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(config.out / "trl"),
        per_device_train_batch_size=config.episodes // config.minibatches,
        steps_per_generation=config.minibatches,
        num_generations=config.group_size,
        max_completion_length=config.max_new_tokens,
        max_steps=iterations * config.minibatches,
        learning_rate=config.learning_rate,
        gradient_checkpointing=False,
        bf16=config.dtype == "bfloat16",
        use_cpu=device.type == "cpu",
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        seed=config.seed,
    )


class TRL:
    """GRPO of TRL with the same backbone, LoRA, prompts, groups and optimiser steps."""

    def __init__(self, config: RLConfig, problems: list[Problem], iterations: int) -> None:
        from trl import GRPOTrainer

        device = resolve_device(config.device)
        dtype = getattr(torch, config.dtype)
        backbone, tokenizer = load_backbone(resolve(config.model).backbone, dtype=dtype, device=device)
        prompts = encode_prompts(
            problems,
            tokenizer,
            max_length=backbone.config.max_position_embeddings,
            max_new_tokens=config.max_new_tokens,
        )
        rows = [
            {"prompt": tokenizer.decode(prompt), "answer": problem.answer}
            for prompt, problem in zip(prompts, problems, strict=True)
        ]
        self.parts = dict.fromkeys(("generation", "verification"), 0.0)
        self.iterations: list[Seconds] = []
        self.config = config

        def correctness(completions: list[str], answer: list[str], **_: Any) -> list[float]:
            started = time.perf_counter()
            verdicts = shared_pool().verify_batch(completions, answer)
            self.parts["verification"] += time.perf_counter() - started
            return [float(verdict.correct) for verdict in verdicts]

        self.trainer = GRPOTrainer(
            model=backbone,
            reward_funcs=correctness,
            args=grpo_config(config, iterations, device),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora_config(backbone, config.lora_rank),
        )
        generate = self.trainer._generate_and_score_completions

        def timed(inputs: Any) -> Any:
            started, checked = time.perf_counter(), self.parts["verification"]
            written = generate(inputs)
            self.parts["generation"] += time.perf_counter() - started - (self.parts["verification"] - checked)
            return written

        self.trainer._generate_and_score_completions = timed  # type: ignore[method-assign]

    def run(self) -> list[Seconds]:
        """Run all iterations in one call, since TRL's trainer cannot pause between two iterations."""
        from transformers import TrainerCallback

        outer, minibatches = self, self.config.minibatches

        class Clock(TrainerCallback):
            started = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step % minibatches == 0:
                    total, self.started = time.perf_counter() - self.started, time.perf_counter()
                    update = total - sum(outer.parts.values())
                    outer.iterations.append({**outer.parts, "update": update, "total": total})
                    outer.parts = dict.fromkeys(outer.parts, 0.0)

        self.trainer.add_callback(Clock())
        self.trainer.train()
        return self.iterations


def run_round(name: str, config: RLConfig, problems: list[Problem], iterations: int) -> tuple[list[Seconds], float]:
    """Seconds of every iteration of one contender but the first, and its peak memory in bytes."""
    memory = PeakMemory(resolve_device(config.device).type)
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, out=Path(folder))
        if name == "trl-grpo":
            seconds = TRL(config, problems, iterations + 1).run()
        else:
            contender = StableBaselines(config, problems) if name == "sb3-ppo" else Ours(name, config, problems)
            seconds = [contender() for _ in range(iterations + 1)]
    return seconds[1:], memory.read()


def table(measured: dict[str, list[tuple[list[Seconds], float]]]) -> tuple[str, dict[str, Any]]:
    """Medians over all iterations, as a Markdown table and as numbers."""
    lines = [
        "| method | generation | verification | update | total (lowest, highest) | update's share | peak memory, GB |"
    ]
    lines.append("|" + "---|" * 7)
    figures: dict[str, Any] = {}
    for name, rounds in measured.items():
        rows = [row for iterations, _ in rounds for row in iterations]
        median = {part: statistics.median(row[part] for row in rows) for part in rows[0]}
        totals = [row["total"] for row in rows]
        share = statistics.median(row["update"] / row["total"] for row in rows)
        peak = max(peak for _, peak in rounds)
        figures[name] = {**median, "update_share": share, "peak_bytes": peak, "totals": totals}
        parts = " | ".join(f"{median[part]:.2f}" for part in ("generation", "verification", "update"))
        lines.append(
            f"| {name} | {parts} | {median['total']:.2f} ({min(totals):.2f}, {max(totals):.2f}) | {share:.1%} "
            f"| {peak / 1e9:.2f} |"
        )
    return "\n".join(lines), figures


def main() -> None:
    """Measure, print a Markdown table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of an option SFT run")
    parser.add_argument("--data", default="arith", help="problems to train on")
    parser.add_argument("--only", nargs="+", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--episodes", type=positive, default=128)
    parser.add_argument("--num-slots", type=positive, default=128)
    parser.add_argument("--max-new-tokens", type=positive, default=96)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--compiled", action="store_true", help="compile the decoding of ours and of the adapter for SB3"
    )
    parser.add_argument(
        "--iterations", type=positive, default=2, help="iterations per round, after the warm-up iteration"
    )
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    config = RLConfig(
        out=Path("unused"),
        model=args.model,
        data=args.data,
        episodes=args.episodes,
        num_slots=args.num_slots,
        max_new_tokens=args.max_new_tokens,
        dtype=args.dtype,
        compiled=args.compiled,
    )
    problems = load_problems(args.data, seed=config.seed)
    names = [name for name in args.only if name != "trl-grpo" or importlib.util.find_spec("trl")]
    settings = {name: str(value) for name, value in vars(args).items()}
    measured: dict[str, list[tuple[list[Seconds], float]]] = {}
    text = ""
    with tqdm(total=args.rounds * len(names)) as bar:
        for _ in range(args.rounds):
            for name in names:
                bar.set_description(name)
                measured.setdefault(name, []).append(run_round(name, config, problems, args.iterations))
                text, figures = table(measured)
                if args.json:
                    result = {"methods": figures, "settings": settings, **origin()}
                    write_atomic(args.json, json.dumps(result, indent=1))
                bar.update()
    print(text)


if __name__ == "__main__":
    start(main)
