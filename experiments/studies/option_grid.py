"""Which options to train: KL targets x policies x identity option x seeds, measured teacher-forced and free-running.

python -m ollm_rl.experiments.studies.option_grid --backbone B --train SOURCE --forced SOURCE --free SOURCE --out OUT

Trains every setting on one cache of hidden states, and one LoRA per seed on the same data and steps. Every setting is
evaluated teacher-forced on ``--forced``, and free-running on ``--free``, greedily by token vote, next to the greedy
backbone. On the first ``--sampled`` of these problems it also measures pass@8 of uniformly drawn options, the ceiling
of what a policy can reach, next to the backbone's pass@8 at temperature 1.

OUT/rows has one file per setting and seed; those already there are skipped. Several processes may share OUT: each takes
rows that no other works on. Prints the tables of all rows.
"""

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.evaluation.free_running import evaluate
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.backbones.loading import load_tokenizer
from ollm_rl.backbones.lora import load_lora
from ollm_rl.devices import resolve_device
from ollm_rl.experiments.script import positive, start, write_if_free
from ollm_rl.metrics.statistics import compare_paired
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from ollm_rl.pretrain.teacher_forced.run import teacher_forced
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.sources import load_problems
from ollm_rl.report.tables import markdown
from ollm_rl.runs import origin

KL_TARGETS = (0.1, 0.2, 0.4, 0.8)
POLICIES: dict[str, dict[str, Any]] = {
    "uniform": {"policy_objective": "imitation"},  # the paper: uniform prior, policy by imitation
    "policy": {"prior": "policy", "policy_objective": "imitation"},
    "marginal": {"policy_objective": "marginal"},
}
GROUP = 8  # completions per problem in pass@8
LORA_PASSES = 2  # passes into which a LoRA's step is split, so that several processes fit on one GPU


def free_running(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    args: argparse.Namespace,
    seed: int,
) -> dict[str, Any]:
    """Greedy accuracy, and pass@8 of samples: of tokens at temperature 1, or of options drawn uniformly."""
    settings: dict[str, Any] = {"max_new_tokens": args.max_new_tokens, "num_slots": args.num_slots}
    greedy = evaluate(policy, tokenizer, problems, **settings, name="greedy")
    if isinstance(policy, OptionPolicy):
        for weight in policy.policy[-1].parameters():  # equal logits: uniformly drawn options
            torch.nn.init.zeros_(weight)
    repeated = [problem for problem in problems[: args.sampled] for _ in range(GROUP)]
    generator = torch.Generator().manual_seed(seed)
    sampled = evaluate(policy, tokenizer, repeated, **settings, generator=generator, name="samples")
    correct = np.array([row["correct"] for row in sampled["completions"]]).reshape(-1, GROUP)
    return {
        "greedy": greedy["accuracy"],
        "greedy_correct": [int(row["correct"]) for row in greedy["completions"]],
        "greedy_tokens": greedy["completion_tokens"],
        "pass_at_8": float(correct.any(1).mean()),
        "pass_at_1": float(correct.mean()),
    }


def sft_config(args: argparse.Namespace, name: str, seed: int, **changes: Any) -> SFTConfig:
    """Settings of one training run; data and steps are the same for all runs."""
    return SFTConfig(
        out=args.out / "runs" / name,
        backbone=args.backbone,
        data=args.train,
        max_steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        logging_steps=args.steps // 10,
        save_steps=args.steps // 10 * 5,
        dtype=args.dtype,
        device=args.device,
        seed=seed,
        **changes,
    )


def train_lora(args: argparse.Namespace, seed: int) -> Path:
    """Train the LoRA of a seed, or wait for another process that trains it."""
    with FileLock(args.out / f"lora-seed{seed}.lock"):
        passes = math.gcd(args.batch_size, LORA_PASSES)
        return run_sft(sft_config(args, f"lora-seed{seed}", seed, stage="lora", gradient_accumulation_steps=passes))


def measure_setting(config: SFTConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Train one setting and evaluate it next to the LoRA of its seed."""
    model = OptionModel.from_pretrained(run_sft(config), dtype=getattr(torch, args.dtype), device=args.device)
    tokenizer = load_tokenizer(args.backbone)
    policy = OptionPolicy(model)
    free = free_running(policy, tokenizer, args.free_problems, args, config.seed)
    adapter = load_lora(model.backbone, str(train_lora(args, config.seed)))
    forced = teacher_forced(model, tokenizer, args.forced_problems, lora=adapter)
    del forced["option_tables"], forced["ambiguity"]
    return {"seed": config.seed, "trainable_share": model.trainable_share(), "forced": forced, "free": free}


def measure_missing(args: argparse.Namespace) -> None:
    """Measure all missing rows that no other process works on."""
    rows = args.out / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        take(rows / f"backbone, seed {seed}.json", partial(measure_backbone, args, seed))
    for policy, seed, identity, target in itertools.product(POLICIES, args.seeds, (False, True), KL_TARGETS):
        path = rows / f"{policy}{', identity' * identity}, KL {target}, seed {seed}.json"
        options = OptionConfig(identity_option=identity, kl_target=target, **POLICIES[policy])
        config = sft_config(args, path.stem, seed, options=options, cache=args.out / "cache")
        take(path, partial(measure_setting, config, args))


def measure_backbone(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Evaluate the backbone, free-running."""
    policy, tokenizer = load_policy(args.backbone, dtype=getattr(torch, args.dtype), device=args.device)
    return {"seed": seed, "free": free_running(policy, tokenizer, args.free_problems, args, seed)}


def take(path: Path, measure: Callable[[], dict[str, Any]]) -> None:
    """Measure and write a row, unless it exists or another process works on it."""
    write_if_free(path, lambda: json.dumps({**measure(), **origin()}, indent=1))


def tables(folder: Path) -> str:
    """The rows as Markdown: means over seeds, the lowest and highest in brackets. A sentence while there are none."""
    settings: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("*.json")):
        settings.setdefault(path.stem.rpartition(", seed")[0], []).append(json.loads(path.read_text()))
    parts = []
    trained = {name: rows for name, rows in settings.items() if "forced" in rows[0]}
    if not trained or "backbone" not in settings:
        return "no tables yet: other processes are at work on the first rows"
    for measure in ("token_accuracy", "nll", "answer_correct"):
        columns = list(next(iter(trained.values()))[0]["forced"]["columns"])
        lines = [
            [name, *(spread([row["forced"]["columns"][column][measure][0] for row in rows]) for column in columns)]
            for name, rows in trained.items()
        ]
        parts.append(markdown([f"teacher-forced {measure.replace('_', ' ')}", *columns], lines))
    options = ("distinct_tokens", "live_share", "mutual_information", "mode_coverage_live", "mode_coverage_first")
    lines = [
        [
            name,
            *(spread([row["forced"]["options"][option][0] for row in rows]) for option in options),
            spread([row["forced"]["columns"]["oracle"]["gain_per_nat"][0] for row in rows]),
            f"{rows[0]['trainable_share']:.2%}",
        ]
        for name, rows in trained.items()
    ]
    names = [option.replace("_", " ") for option in options]
    parts.append(markdown(["options", *names, "oracle's gain per nat", "trainable share"], lines))
    free = ("greedy", "greedy_tokens", "pass_at_1", "pass_at_8")
    backbone_correct = settings["backbone"][0]["free"]["greedy_correct"]  # greedy decoding does not depend on the seed
    lines = [
        [name, *(spread([row["free"][key] for row in rows]) for key in free), difference(rows, backbone_correct)]
        for name, rows in settings.items()
    ]
    header = ["free-running", "greedy", "tokens", "pass@1 sampled", "pass@8 sampled", "greedy minus backbone, points"]
    parts.append(markdown(header, lines))
    return "\n\n".join(parts)


def spread(values: Sequence[float]) -> str:
    """Mean, lowest and highest value as text."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f}, {max(values):.3f})"


def difference(rows: Sequence[Any], backbone_correct: Sequence[int]) -> str:
    """Greedy accuracy minus the backbone's on the same problems, in points, with its 95 % interval."""
    comparison = compare_paired([row["free"]["greedy_correct"] for row in rows], [backbone_correct] * len(rows))
    return f"{100 * comparison.difference:.1f} ({100 * comparison.low:.1f}, {100 * comparison.high:.1f})"


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--train", required=True, help="source of worked solutions to train on")
    parser.add_argument("--forced", required=True, help="source of worked solutions for the teacher-forced columns")
    parser.add_argument("--free", required=True, help="source of problems for the free-running columns")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=positive, default=250, help="training steps; a multiple of 10")
    parser.add_argument("--batch-size", type=positive, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--limit", type=positive, help="problems per evaluation; all of jsonl: where left out")
    parser.add_argument("--sampled", type=positive, help="use only the first N problems for pass@8; all where left out")
    parser.add_argument("--max-new-tokens", type=positive, default=128)
    parser.add_argument("--num-slots", type=positive, default=512)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    args.device = str(resolve_device("auto"))
    args.forced_problems = load_problems(args.forced, split="test", limit=args.limit)
    args.free_problems = load_problems(args.free, split="test", limit=args.limit)
    measure_missing(args)
    print(tables(args.out / "rows"))


if __name__ == "__main__":
    start(main)
