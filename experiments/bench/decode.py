"""Decoding speed of several contenders in one run.

python -m ollm_rl.experiments.bench.decode --backbone tiny-arith --slots 32 64

The contenders (``contenders.py``) take turns (A B A B), and their medians are compared in real tokens per second. The
number of new tokens is uniform in 32..256, cut to the backbone's context (``tiny-arith`` has 256 tokens for prompt and
completion). Results so far are written to ``--json`` after every run, and its complete cases are not run again. The
bound is memory traffic: per step the weights and every slot's keys and values, at the bandwidth of a plain sum.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM

from ollm_rl.agents.policies.anchored import AnchoredPolicy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.backbones.loading import context_length, load_backbone
from ollm_rl.decode.row_cache import first_pass
from ollm_rl.devices import resolve_device
from ollm_rl.errors import UsageError
from ollm_rl.experiments.bench.contenders import (
    Clock,
    Engine,
    EngineSteps,
    Generate,
    GenerateBatch,
    VectorEnvSteps,
    Workload,
)
from ollm_rl.experiments.bench.decode_figures import plot, ratios, table
from ollm_rl.experiments.bench.gym_loop import GymLoop
from ollm_rl.experiments.script import positive, start
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.prompts import encode_prompts
from ollm_rl.problems.sources import load_problems
from ollm_rl.runs import origin, write_atomic

QWEN_1_5B = {  # Qwen2.5-1.5B's config.json
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
BACKBONES = ("tiny-arith", "smollm2-135m", "qwen2.5-1.5b-random")
GYM_EVERY = 64  # every how many steps the Gym loop is run


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", choices=BACKBONES, default="tiny-arith")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="bfloat16 on CUDA where left out, else float32"
    )
    parser.add_argument("--slots", type=positive, nargs="+", default=[32, 64], help="one case per value")
    parser.add_argument(
        "--context", type=int, nargs="+", default=[0], help="tokens per random prompt; 0: arith problems"
    )
    parser.add_argument("--new-tokens", type=positive, nargs=2, default=[32, 256], help="bounds of the uniform lengths")
    parser.add_argument("--waves", type=positive, nargs="+", default=[4], help="episodes per slot")
    parser.add_argument(
        "--group", type=positive, nargs="+", default=[1], help="episodes per prompt, which the engine encodes once"
    )
    parser.add_argument("--repeats", type=positive, default=3, help="runs of every contender")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: CPU seconds of the process, for a shared machine; with OMP_NUM_THREADS=1",
    )
    parser.add_argument("--only", nargs="+", help="run only these contenders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file of the results; cases already there are not run again")
    parser.add_argument("--plot", type=Path, help="SVG of the time per step by slots and context")
    return parser.parse_args()


def load(name: str, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """A backbone and its tokenizer; the random one has none."""
    if name != "qwen2.5-1.5b-random":
        return load_backbone(name, dtype=dtype, device=device)
    torch.manual_seed(0)
    with torch.device(device):
        return Qwen2ForCausalLM(Qwen2Config(**QWEN_1_5B)).to(dtype).eval(), None


def workload(
    args: argparse.Namespace, model: OptionModel, tokenizer: Any, slots: int, context: int, group: int, waves: int
) -> Workload:
    """The prompts and lengths of one case."""
    count, draw = waves * slots, np.random.default_rng([args.seed, slots, context])
    room = context_length(model.backbone)
    if context or tokenizer is None:
        # No ids from either end of the vocabulary, which are often special tokens.
        prompts = draw.integers(10, model.vocab_size - 300, (count, context or 40)).tolist()
    else:
        prompts = encode_prompts(load_problems("arith", limit=count, seed=args.seed), tokenizer, max_length=room)
    prompts = [prompts[index // group] for index in range(count)]
    low, high = args.new_tokens
    high = min(high, room - max(map(len, prompts)))
    lengths = draw.integers(min(low, high), high + 1, count).tolist()
    torch.manual_seed(args.seed)
    return Workload(model, OptionPolicy(model), tokenizer, prompts, lengths, slots, args.seed)


def bandwidth(device: torch.device) -> float:
    """Bytes per second that a sum over 1 GiB reads, best of five."""
    data, best = torch.ones(2**28, device=device), 0.0
    for _ in range(5):
        started = time.perf_counter()
        data.sum().item()
        best = max(best, data.numel() * data.element_size() / (time.perf_counter() - started))
    return best


def bound(work: Workload, bytes_per_second: float) -> float:
    """Tokens per second if memory traffic were the only cost."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in work.backbone.parameters())
    numbers = sum(
        heads * size
        for heads, size in first_pass(
            work.backbone, torch.zeros(1, 1, dtype=torch.long, device=work.backbone.device)
        ).shapes
    )
    # On average the prompt and n / 2 tokens precede a token of a completion of n tokens, and n is its weight.
    context = sum(n * (len(p) + n / 2) for n, p in zip(work.lengths, work.prompts, strict=True)) / work.tokens
    traffic = weights + work.slots * context * numbers * work.backbone.dtype.itemsize
    return work.slots * bytes_per_second / traffic


def contenders(work: Workload, every: int, clock: Clock) -> dict[str, Callable[[], float]]:
    """The contenders for the workload's device, by name, each timed by ``clock``."""
    engine = Engine(work, clock)
    runs: dict[str, Callable[[], float]] = {
        "engine": engine,
        "engine, anchored policy": Engine(work, clock, policy=AnchoredPolicy(work.model)),
        "hf_generate dynamic": Generate(work, clock, "dynamic"),
        "hf_generate static": Generate(work, clock, "static"),
        "gym_loop": GymLoop(work, clock, engine, every),
    }
    if work.backbone.device.type == "cuda":
        runs["engine, compiled"] = Engine(work, clock, compiled=True)
        runs["engine, compiled, anchored policy"] = Engine(
            work, clock, policy=AnchoredPolicy(work.model), compiled=True
        )
        runs["engine, policy outside"] = EngineSteps(work, clock)
        runs["generate_batch"] = GenerateBatch(work, clock)
        if work.tokenizer is not None:
            runs["TextGenVectorEnv.step"] = VectorEnvSteps(work, clock)
            runs["TextGenVectorEnv.step, compiled"] = VectorEnvSteps(work, clock, compiled=True)
    return runs


def measure(
    args: argparse.Namespace, work: Workload, bytes_per_second: float, keep: Callable[[dict[str, Any]], None]
) -> None:
    """Measure one case: every contender in turn, ``repeats`` times, on CUDA after one warm-up run.

    The results so far are passed to ``keep`` after every run.
    """
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    runs = contenders(work, GYM_EVERY, clock)
    if args.only:
        if unknown := set(args.only) - set(runs):
            raise UsageError(f"--only names {sorted(unknown)[0]!r}; give some of {', '.join(map(repr, runs))}")
        runs = {name: run for name, run in runs.items() if name in args.only or name == "engine"}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    failed: dict[str, str] = {}
    engine, prefills, limit = runs["engine"], list[float](), bound(work, bytes_per_second)
    assert isinstance(engine, Engine)
    cuda = work.backbone.device.type == "cuda"
    with tqdm(total=args.repeats * len(runs), desc=f"{args.backbone} {work.slots} slots") as bar:
        for turn in range(args.repeats):
            for name, run in runs.items():
                bar.set_postfix_str(name)
                if name not in failed:
                    try:
                        if cuda and turn == 0:  # records graphs and chooses kernels
                            run()
                        seconds[name].append(run())
                    except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
                        if name == "engine":
                            raise
                        failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                bar.update()
                if name == "engine":
                    prefills.append(engine.prefill())
                assert engine.rollout is not None
                measured = {"prefill_seconds": statistics.median(prefills), "wasted_share": engine.rollout.wasted_share}
                turns = min(len(times) for name, times in seconds.items() if name not in failed)
                described = {"backbone": args.backbone, **describe(work, seconds), "turns": turns, "failed": failed}
                keep({**described, **measured, "bound_tokens_per_second": limit})


def describe(work: Workload, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The numbers of a case: its prompts and tokens, and the speed of each contender."""
    measured = {name: times for name, times in seconds.items() if times}
    return {
        "slots": work.slots,
        "context": round(float(np.mean([len(prompt) for prompt in work.prompts])), 1),
        "new_tokens": [min(work.lengths), max(work.lengths)],
        "episodes": len(work.prompts),
        "prompts": len(set(map(tuple, work.prompts))),
        "tokens": work.tokens,
        "tokens_per_second": {name: work.tokens / statistics.median(times) for name, times in measured.items()},
        "seconds": measured,
    }


def keep_case(result: dict[str, Any], key: str, path: Path | None, case: dict[str, Any]) -> None:
    """Add a case to the results, and write them into the file."""
    result["cases"][key] = case
    result["ratios"] = ratios(list(result["cases"].values()))
    if path:
        write_atomic(path, json.dumps(result, indent=1))


def machine(device: torch.device) -> str:
    """Name of the device and, for a CPU, its cores and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, {torch.get_num_threads()} threads"


def main() -> None:
    """Run the missing cases; print and write all results."""
    args = arguments()
    device = resolve_device(args.device)
    dtype = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    settings = {
        "backbone": args.backbone,
        "device": device.type,
        "dtype": dtype,
        "new_tokens": list(args.new_tokens),
        "repeats": args.repeats,
        "clock": args.clock,
        "seed": args.seed,
    }
    result: dict[str, Any] = {"settings": settings, "cases": {}}
    if args.json and args.json.exists():
        stored = json.loads(args.json.read_text())
        if stored["settings"] != settings:
            raise SystemExit(f"{args.json} holds other settings ({stored['settings']}); give another file")
        result = stored
    model = None
    for slots, context, group, waves in itertools.product(args.slots, args.context, args.group, args.waves):
        key = f"{slots} slots, context {context}, group {group}, waves {waves}"
        if result["cases"].get(key, {"turns": 0})["turns"] >= args.repeats:
            continue
        if model is None:
            backbone, tokenizer = load(args.backbone, getattr(torch, dtype), device)
            torch.manual_seed(args.seed)
            model, speed = OptionModel(backbone, OptionConfig()), bandwidth(device)
            result |= {"machine": machine(device), "bandwidth": speed, "origin": origin()}
        work = workload(args, model, tokenizer, slots, context, group, waves)
        measure(args, work, speed, partial(keep_case, result, key, args.json))
    cases = list(result["cases"].values())
    where = f"{result['machine']}, {dtype}, {result['bandwidth'] / 1e9:.0f} GB/s"
    print(f"{args.backbone} on {where}, {args.clock} time, seed {args.seed}\n")
    print(table(cases))
    print("\n" + ", ".join(f"{name} {value:.2f}" for name, value in result["ratios"].items()))
    for case in cases:
        for name, error in case["failed"].items():
            print(f"{case['slots']} slots: {name} failed ({error})")
    if args.plot:
        plot(cases, args.plot)


if __name__ == "__main__":
    start(main)
