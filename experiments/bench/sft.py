"""Speed and peak memory of option SFT next to those of a LoRA, in one run.

python -m ollm_rl.experiments.bench.sft --backbone NAME --device cpu|cuda --json FILE

All variants take optimiser steps on the same batches of random tokens, in turn (A B C ... A B C ...). Each is compared
with the LoRA of the same round. ``qwen2.5-1.5b-random`` is that configuration with random weights, which suffice to
measure speed.
"""

import argparse
import ctypes
import gc
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import PreTrainedModel

from ollm_rl.backbones.lora import lora_config
from ollm_rl.experiments.bench.decode import BACKBONES, load
from ollm_rl.experiments.script import positive, start
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import IGNORED, CountedStates, OptionModel
from ollm_rl.pretrain.data import PadRight
from ollm_rl.pretrain.hidden_cache import collate_states, open_hidden_cache
from ollm_rl.runs import origin, write_atomic

VARIANTS = ("lora", "stream-gumbel", "stream-exact", "cache-build", "cached-gumbel", "cached-exact")
PROMPT, COMPLETION = (40, 120), (60, 180)  # tokens, uniform; similar to GSM8K
BF16_PEAK = {"H100": 989e12, "H200": 989e12}  # dense operations per second, data sheet (SXM)
WARM_UP = 2  # steps
Batch = dict[str, torch.Tensor]
Example = dict[str, list[int]]


class Case(NamedTuple):
    """A case to measure: a frozen backbone, examples in batches, the device, and whether it uses bfloat16."""

    backbone: PreTrainedModel
    batches: list[list[Example]]
    device: str
    half: bool

    def clock(self) -> float:
        """Current time in seconds, after the device has finished its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def make_case(name: str, device: str, batch_size: int, steps: int) -> Case:
    """Load the backbone and draw solutions of random tokens and varied length, at most the backbone's context."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    backbone, _ = load(name, dtype, torch.device(device))
    rng, count = np.random.default_rng(0), batch_size * steps
    context, vocabulary = backbone.config.max_position_embeddings, backbone.config.vocab_size
    examples = []
    for prompt, completion in zip(rng.integers(*PROMPT, count), rng.integers(*COMPLETION, count), strict=True):
        ids = rng.integers(vocabulary, size=prompt + completion).tolist()
        labels = [IGNORED] * prompt + ids[prompt:]
        examples.append({"input_ids": ids[:context], "labels": labels[:context]})
    batches = [examples[start : start + batch_size] for start in range(0, count, batch_size)]
    return Case(backbone, batches, device, dtype is torch.bfloat16)


class PeakMemory:
    """Peak memory since construction: that of the device on CUDA, else of the process (Linux)."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM

    def read(self) -> float:
        """The peak in bytes."""
        if self.cuda:
            return float(torch.cuda.max_memory_allocated())
        return 1024.0 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def train(
    case: Case, model: nn.Module, load: Callable[[int], Batch], loss_of: Callable[[Batch], torch.Tensor]
) -> tuple[float, float]:
    """Take a step on every batch; returns seconds per step after a warm-up, and floating-point operations of a step.

    Args:
        case: The measured case.
        model: Model whose parameters with gradients are trained.
        load: Returns the batch with this number; its time counts.
        loss_of: Returns the loss of a batch.
    """
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)

    def step(number: int) -> None:
        optimizer.zero_grad()
        loss_of({name: tensor.to(case.device) for name, tensor in load(number).items()}).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step(0)
    for number in range(1, WARM_UP):
        step(number)
    started = case.clock()
    for number in range(len(case.batches)):
        step(number)
    return (case.clock() - started) / len(case.batches), float(counter.get_total_flops())


def run_lora(case: Case) -> tuple[float, float]:
    """Steps of a LoRA on batches of similar length, as in the stage ``lora``."""
    size, collate = len(case.batches[0]), PadRight(0)
    ordered = sorted((example for batch in case.batches for example in batch), key=lambda e: len(e["input_ids"]))
    lora = get_peft_model(case.backbone, lora_config(case.backbone, 16)).train()

    def loss_of(batch: Batch) -> torch.Tensor:
        with torch.autocast(case.device, torch.bfloat16, enabled=case.half):
            loss: torch.Tensor = lora(**batch).loss
            return loss

    result = train(case, lora, lambda number: collate(ordered[number * size : (number + 1) * size]), loss_of)
    lora.unload()
    case.backbone.eval()
    return result


def run_options(case: Case, variant: str, folder: Path) -> tuple[float, float]:
    """Steps of the option plug-in on token ids or on stored hidden states, or the computation of the latter."""
    source, _, suffix = variant.partition("-")
    estimator: Any = "exact" if source == "cache" else suffix
    model = OptionModel(case.backbone, OptionConfig(num_options=10, estimator=estimator))
    if source == "stream":
        collate = PadRight(0)
        return train(case, model, lambda number: collate(case.batches[number]), lambda batch: model(**batch).loss)
    examples, size = [example for batch in case.batches for example in batch], len(case.batches[0])
    if source == "cache":
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            started = case.clock()
            open_hidden_cache(model, examples, Path(fresh), pad_token_id=0)
            return (case.clock() - started) / len(case.batches), float("nan")
    stored = open_hidden_cache(model, examples, folder / "kept", pad_token_id=0)

    def load(number: int) -> Batch:
        return collate_states([stored[index] for index in range(number * size, (number + 1) * size)])

    return train(case, model, load, lambda batch: model.loss(CountedStates(**batch)).loss)


def measure(case: Case, rounds: int) -> Iterator[dict[str, list[dict[str, float]]]]:
    """Yield, after every round, all results so far: ``seconds`` and ``operations`` per step, and ``peak`` bytes."""
    measured: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=rounds * len(VARIANTS)) as bar:
        for _ in range(rounds):
            for variant in VARIANTS:
                bar.set_description(variant)
                torch.manual_seed(0)
                memory = PeakMemory(case.device)
                result = run_lora(case) if variant == "lora" else run_options(case, variant, Path(folder))
                measured[variant].append({"seconds": result[0], "peak": memory.read(), "operations": result[1]})
                bar.update()
            yield measured


def summarise(case: Case, measured: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Medians over rounds. Tokens per second include prompts; ratios are to the LoRA of the same round."""
    tokens = sum(len(example["input_ids"]) for batch in case.batches for example in batch) / len(case.batches)
    card = torch.cuda.get_device_name() if case.device == "cuda" else ""
    ceiling = next((rate for name, rate in BF16_PEAK.items() if name in card), float("nan"))
    figures = {}
    for variant, rounds in measured.items():
        pairs = zip(measured["lora"], rounds, strict=True)
        ratios = sorted(base["seconds"] / each["seconds"] for base, each in pairs)
        rate = statistics.median(each["operations"] / each["seconds"] for each in rounds)
        figures[variant] = {
            "tokens_per_second": statistics.median(tokens / each["seconds"] for each in rounds),
            "times_lora": [statistics.median(ratios), ratios[0], ratios[-1]],
            "peak_bytes": max(each["peak"] for each in rounds),
            "share_of_bf16_peak": rate / ceiling,
        }
    return figures


def main() -> None:
    """Measure, print a Markdown table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny-arith", choices=BACKBONES)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch-size", type=positive, default=64, help="solutions per step")
    parser.add_argument("--steps", type=positive, default=8, help="steps per variant and round")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    if args.steps < WARM_UP:
        parser.error(f"--steps {args.steps} must be at least {WARM_UP}, the number of warm-up steps")
    case = make_case(args.backbone, args.device, args.batch_size, args.steps)
    settings = {name: str(value) for name, value in vars(args).items()}
    figures: dict[str, dict[str, Any]] = {}
    for measured in measure(case, args.rounds):
        figures = summarise(case, measured)
        if args.json:
            write_atomic(args.json, json.dumps({"variants": figures, "settings": settings, **origin()}, indent=1))
    print("| variant | tokens/s | times LoRA (lowest, highest round) | peak memory, GB | share of the bf16 peak |")
    print("|---|---|---|---|---|")
    for variant, row in figures.items():
        ratio, low, high = row["times_lora"]
        share = row["share_of_bf16_peak"]
        print(
            f"| {variant} | {row['tokens_per_second']:,.0f} | {ratio:.2f} ({low:.2f}, {high:.2f}) "
            f"| {row['peak_bytes'] / 1e9:.2f} | {'–' if math.isnan(share) else f'{share:.1%}'} |"
        )


if __name__ == "__main__":
    start(main)
