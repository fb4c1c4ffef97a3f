"""Which options to train: KL targets x policies x identity option x seeds, each measured in every way we know.

python -m ollm_rl.experiments.studies.option_grid --backbone B --train SOURCE --forced SOURCE --free SOURCE --out OUT

Trains every setting on one cache of hidden states, and a LoRA a seed on the same data and steps. Then evaluates it:
teacher-forced on ``--forced``, and free-running on ``--free``, greedy by token vote beside the greedy backbone.
On the first ``--sampled`` of these it takes pass@8 of uniformly drawn options, the ceiling of what a policy can reach,
beside the backbone's at temperature 1. A row a setting lies in OUT/rows; what is there is not done again, and several
processes may share an OUT: each takes rows that no other works at. Prints the tables of all rows.
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
from filelock import FileLock, Timeout
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.evaluation.free_running import evaluate
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.backbones.loading import load_tokenizer
from ollm_rl.backbones.lora import load_lora
from ollm_rl.devices import resolve_device
from ollm_rl.metrics.statistics import compare_paired
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from ollm_rl.pretrain.teacher_forced.run import teacher_forced
from ollm_rl.problems.sources import Problem, load_problems
from ollm_rl.runs import origin, write_atomic

KL_TARGETS = (0.1, 0.2, 0.4, 0.8)
POLICIES: dict[str, dict[str, Any]] = {
    "uniform": {"policy_objective": "imitation"},  # the paper: uniform prior, policy by imitation
    "policy": {"prior": "policy", "policy_objective": "imitation"},
    "marginal": {"policy_objective": "marginal"},
}
GROUP = 8  # completions a problem in pass@8
LORA_PASSES = 2  # over which the solutions of a LoRA's step are spread, so that a few fit on one GPU at a time


def free_running(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    given: argparse.Namespace,
    seed: int,
) -> dict[str, Any]:
    """Greedy accuracy, and pass@8 of samples: of tokens at temperature 1, or of options drawn uniformly."""
    settings: dict[str, Any] = {"max_new_tokens": given.max_new_tokens, "num_slots": given.num_slots}
    greedy = evaluate(policy, tokenizer, problems, **settings, name="greedy")
    if isinstance(policy, OptionPolicy):
        for weight in policy.policy[-1].parameters():  # equal logits: uniformly drawn options
            torch.nn.init.zeros_(weight)
    repeated = [problem for problem in problems[: given.sampled] for _ in range(GROUP)]
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


def sft_config(given: argparse.Namespace, name: str, seed: int, **changes: Any) -> SFTConfig:
    """Settings of one training run: the same data and steps for all."""
    return SFTConfig(
        out=given.out / "runs" / name,
        backbone=given.backbone,
        data=given.train,
        max_steps=given.steps,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        logging_steps=given.steps // 10,
        save_steps=given.steps // 10 * 5,
        dtype=given.dtype,
        device=given.device,
        seed=seed,
        **changes,
    )


def train_lora(given: argparse.Namespace, seed: int) -> Path:
    """The LoRA of a seed; a process that finds another at it waits."""
    with FileLock(given.out / f"lora-seed{seed}.lock"):
        passes = math.gcd(given.batch_size, LORA_PASSES)
        return run_sft(sft_config(given, f"lora-seed{seed}", seed, stage="lora", gradient_accumulation_steps=passes))


def measure_setting(config: SFTConfig, given: argparse.Namespace) -> dict[str, Any]:
    """Train one setting and evaluate it beside the LoRA of its seed."""
    model = OptionModel.from_pretrained(run_sft(config), dtype=getattr(torch, given.dtype), device=given.device)
    tokenizer = load_tokenizer(given.backbone)
    policy = OptionPolicy(model)
    free = free_running(policy, tokenizer, given.free_problems, given, config.seed)
    adapter = load_lora(model.backbone, str(train_lora(given, config.seed)))
    forced = teacher_forced(model, tokenizer, given.forced_problems, lora=adapter)
    del forced["option_tables"], forced["ambiguity"]
    return {"seed": config.seed, "trainable_share": model.trainable_share(), "forced": forced, "free": free}


def measure_missing(given: argparse.Namespace) -> None:
    """Every row that is not there yet and that no other process works at."""
    rows = given.out / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        take(rows / f"backbone, seed {seed}.json", partial(measure_backbone, given, seed))
    for policy, seed, identity, target in itertools.product(POLICIES, given.seeds, (False, True), KL_TARGETS):
        path = rows / f"{policy}{', identity' * identity}, KL {target}, seed {seed}.json"
        options = OptionConfig(identity_option=identity, kl_target=target, **POLICIES[policy])
        config = sft_config(given, path.stem, seed, options=options, cache=given.out / "cache")
        take(path, partial(measure_setting, config, given))


def measure_backbone(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The backbone, free-running."""
    policy, tokenizer = load_policy(given.backbone, dtype=getattr(torch, given.dtype), device=given.device)
    return {"seed": seed, "free": free_running(policy, tokenizer, given.free_problems, given, seed)}


def take(path: Path, measure: Callable[[], dict[str, Any]]) -> None:
    """Write a row, unless it is there or another process is at it."""
    try:
        with FileLock(path.with_suffix(".lock"), timeout=0):
            if not path.exists():
                write_atomic(path, json.dumps({**measure(), **origin()}, indent=1))
    except Timeout:
        return


def tables(folder: Path) -> str:
    """The rows as Markdown: means over seeds, with the lowest and highest in brackets."""
    settings: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("*.json")):
        settings.setdefault(path.stem.rpartition(", seed")[0], []).append(json.loads(path.read_text()))
    parts = []
    trained = {name: rows for name, rows in settings.items() if "forced" in rows[0]}
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
    beside = settings["backbone"][0]["free"]["greedy_correct"]  # greedy decoding knows no seed
    lines = [
        [name, *(spread([row["free"][key] for row in rows]) for key in free), difference(rows, beside)]
        for name, rows in settings.items()
    ]
    header = ["free-running", "greedy", "tokens", "pass@1 sampled", "pass@8 sampled", "greedy minus backbone, points"]
    parts.append(markdown(header, lines))
    return "\n\n".join(parts)


def spread(values: Sequence[float]) -> str:
    """Mean, lowest and highest."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f}, {max(values):.3f})"


def difference(rows: Sequence[Any], beside: Sequence[int]) -> str:
    """Greedy accuracy minus that of the backbone on the same problems, with its 95 % interval."""
    found = compare_paired([row["free"]["greedy_correct"] for row in rows], [beside] * len(rows))
    return f"{100 * found.difference:.1f} ({100 * found.low:.1f}, {100 * found.high:.1f})"


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *lines])


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--train", required=True, help="source of worked solutions to train on")
    parser.add_argument("--forced", required=True, help="source of worked solutions for the teacher-forced columns")
    parser.add_argument("--free", required=True, help="source of problems for the free-running columns")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=250, help="of training; a multiple of 10")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--limit", type=int, help="problems of each evaluation; all of jsonl: where left out")
    parser.add_argument("--sampled", type=int, help="problems of pass@8, the first; all where left out")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--num-slots", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    given = parser.parse_args()
    given.device = str(resolve_device("auto"))
    given.forced_problems = load_problems(given.forced, split="test", limit=given.limit)
    given.free_problems = load_problems(given.free, split="test", limit=given.limit)
    measure_missing(given)
    print(tables(given.out / "rows"))


if __name__ == "__main__":
    main()
