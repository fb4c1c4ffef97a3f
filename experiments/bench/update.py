"""Seconds and peak memory of what learns over the whole vocabulary, in this checkout against another one: A B A B.

python -m ollm_rl.experiments.bench.update --against CHECKOUT [--backbone smollm2-135m --device cuda --episodes 512]

CHECKOUT is a folder with another commit (``git worktree add CHECKOUT COMMIT``). The parts are an update of the
vocabulary's REINFORCE (4 optimiser steps, LoRA of rank 16), and steps of ``ollm-rl sft`` in the stages lora and
backbone. Each runs in a process of its own, first in CHECKOUT, then here, round by round, on the same texts of random
tokens; groups of eight episodes have one prompt. The first step of a process warms up and does not count.

Memory is the GPU's highest, or what the process grew by. The difference is the largest relative one of losses and
gradient norms. On a CPU seconds are the processor's, so that other work on the machine counts little; set
OMP_NUM_THREADS=1, since threads that wait for each other count too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.agents.training.update import Penalties, Updater
from ollm_rl.backbones.loading import load_backbone
from ollm_rl.decode.rollout import Rollout
from ollm_rl.experiments.bench.sft import PeakMemory
from ollm_rl.experiments.script import positive, start
from ollm_rl.options.model import IGNORED
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.data import PadRight
from ollm_rl.pretrain.order import LengthOrderTrainer
from ollm_rl.pretrain.sft import trainable, training_arguments
from ollm_rl.runs import origin, write_atomic

PARTS = ("update", "lora", "backbone")
PROMPT = (40, 120)  # tokens, uniform; similar to GSM8K
TINY: dict[str, Any] = {  # a small model with the vocabulary of SmolLM2
    "vocab_size": 49_152,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


def backbone_of(args: argparse.Namespace, dtype: torch.dtype) -> Any:
    """The backbone, float32 or in ``dtype``."""
    if args.backbone != "tiny":
        return load_backbone(args.backbone, dtype=dtype, device=args.device)[0]
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY)).to(args.device, dtype).eval()


def texts(args: argparse.Namespace, vocab_size: int) -> tuple[list[list[int]], list[list[int]]]:
    """Random prompts, equal within a group of eight, and completions."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(vocab_size, size=length).tolist() for length in draw.integers(*PROMPT, args.episodes // 8)]
    lengths = draw.integers(max(1, args.new_tokens // 4), args.new_tokens + 1, args.episodes)
    return [prompts[index // 8] for index in range(args.episodes)], [
        draw.integers(vocab_size, size=length).tolist() for length in lengths
    ]


def run_update(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """Updates on one rollout; the median of their seconds."""
    backbone = backbone_of(args, dtype)
    torch.manual_seed(0)
    policy = TokenPolicy(backbone, rank=16)
    prompts, completions = texts(args, policy.head.vocab_size)
    tokens = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, completions)), batch_first=True)
    mask = torch.arange(tokens.shape[1]) < torch.tensor(list(map(len, completions)))[:, None]
    log_probs = torch.full(tokens.shape, -float(np.log(policy.head.vocab_size)))
    rollout = Rollout(prompts, tokens, mask, mask, log_probs, torch.zeros(tokens.shape), mask[:, 0]).to(args.device)
    rewards = torch.arange(args.episodes, device=args.device).remainder(2).float()
    paths: Any = {"out": Path("unused"), "model": "unused", "episodes": args.episodes, "pass_tokens": args.pass_tokens}
    updater = Updater(policy, RLConfig(**paths, action_space="tokens", policy="lora", algorithm="reinforce"))
    memory, seconds, terms = PeakMemory(args.device), [], {}
    before = memory.read()
    for number in range(args.steps + 1):
        started = clock(args.device)
        generator = torch.Generator().manual_seed(number)
        terms = updater.run(
            rollout, rewards, iteration=number, penalties=Penalties(args.ent_coef, 0.0), generator=generator
        )
        seconds.append(clock(args.device) - started)
    return result(
        args, memory, before, seconds, {name: terms[name] for name in ("policy_loss", "entropy", "grad_norm")}
    )


class Clocked(LengthOrderTrainer):
    """Notes when a step starts."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One pass, which is a step here."""
        self.starts.append(clock(self.args.device.type))
        return super().training_step(*args, **kwargs)


def run_stage(args: argparse.Namespace, stage: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Steps of ``ollm-rl sft`` with 64 solutions each, or all if there are fewer."""
    half = dtype is torch.bfloat16
    backbone = backbone_of(args, torch.float32 if stage == "backbone" else dtype)
    prompts, completions = texts(args, backbone.get_input_embeddings().weight.shape[0])
    examples = [
        {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        settings: Any = {"dtype": "bfloat16" if half else "float32", "batch_size": min(64, len(examples))}
        config = SFTConfig(out=Path(folder), stage=stage, max_steps=args.steps + 2, save_steps=1000, **settings)
        torch.manual_seed(0)
        arguments = training_arguments(config, torch.device(args.device))
        arguments.save_strategy, arguments.report_to = "no", []
        model = trainable(backbone, config)
        trainer = Clocked(model=model, args=arguments, train_dataset=examples, data_collator=PadRight(0))
        trainer.starts = []
        memory = PeakMemory(args.device)
        before = memory.read()
        trainer.train()
        seconds = [end - start for start, end in zip(trainer.starts, trainer.starts[1:], strict=False)]
        log = next(row for row in trainer.state.log_history if "loss" in row or "train_loss" in row)
    loss = log.get("loss", log.get("train_loss"))
    return result(args, memory, before, seconds, {"loss": loss})


def result(
    args: argparse.Namespace, memory: PeakMemory, before: float, seconds: list[float], terms: dict[str, float]
) -> dict[str, Any]:
    """Figures of a process; on a CPU its memory before the first step does not count."""
    peak = memory.read() - (0 if args.device == "cuda" else before)
    return {"seconds": statistics.median(seconds[1:]), "peak_bytes": peak, "terms": terms}


def clock(device: str) -> float:
    """Current time in seconds, on a GPU after it has finished its work, else that of the processor."""
    if device != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def in_checkout(folder: Path, part: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run a part with the package of a checkout, in a process of its own."""
    skipped = ("against", "only", "rounds", "json", "run")
    settings = {name: value for name, value in vars(args).items() if name not in skipped and value is not None}
    flags = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--run", part, *flags]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{part} in {folder} failed:\n{done.stderr}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def table(measured: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]) -> str:
    """Medians over the rounds, and ratios of a round's pair, as a Markdown table."""
    lines = [
        "| part | seconds, other | here | ratio (lowest, highest) | peak, GB, other | here | difference |",
        "|" + "---|" * 7,
    ]
    for part, pairs in measured.items():
        seconds, peaks = (
            [statistics.median(run[key] for run in runs) for runs in zip(*pairs, strict=True)]
            for key in ("seconds", "peak_bytes")
        )
        ratios = sorted(new["seconds"] / old["seconds"] for old, new in pairs)
        worst = max(
            abs(new["terms"][name] - value) / max(abs(value), 1e-12)
            for old, new in pairs
            for name, value in old["terms"].items()
        )
        lines.append(
            f"| {part} | {seconds[0]:.2f} | {seconds[1]:.2f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f}, "
            f"{ratios[-1]:.2f}) | {peaks[0] / 1e9:.2f} | {peaks[1] / 1e9:.2f} | {worst:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print a Markdown table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="folder with another commit")
    parser.add_argument("--backbone", default="tiny", help="tiny (49,152 tokens, random), or what load_backbone knows")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--episodes", type=positive, default=32, help="episodes of an update, a multiple of 8")
    parser.add_argument("--new-tokens", type=positive, default=96, help="tokens of the longest completion")
    parser.add_argument("--ent-coef", type=float, default=0.0)
    parser.add_argument("--pass-tokens", type=positive, help="as in ollm-rl train")
    parser.add_argument("--steps", type=positive, default=2, help="updates, or steps, that count")
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--run", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    if args.run:
        run = run_update(args, dtype) if args.run == "update" else run_stage(args, args.run, dtype)
        print(json.dumps(run))
        return
    if args.against is None or not (args.against / "ollm_rl").is_dir():
        parser.error(f"--against {args.against} has no ollm_rl; give a checkout (git worktree add FOLDER COMMIT)")
    if args.episodes % 8:
        parser.error(f"--episodes {args.episodes} is no multiple of 8, the episodes of a group")
    here = Path(__file__).resolve().parents[2]
    measured: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    with tqdm(total=2 * args.rounds * len(args.only)) as bar:
        for _ in range(args.rounds):
            for part in args.only:
                bar.set_description(f"{part}, other")
                other = in_checkout(args.against.resolve(), part, args)
                bar.update()
                bar.set_description(f"{part}, here")
                measured.setdefault(part, []).append((other, in_checkout(here, part, args)))
                if args.json:
                    settings = {name: str(value) for name, value in vars(args).items()}
                    write_atomic(
                        args.json, json.dumps({"rounds": measured, "settings": settings, **origin()}, indent=1)
                    )
                bar.update()
    print(table(measured))


if __name__ == "__main__":
    start(main)
