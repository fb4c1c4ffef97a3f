"""Hours and memory of ``paper.sh`` on this GPU, from 20 steps of each stage: no weights are needed.

python -m ollm_rl.experiments.studies.paper_cost --out OUT

Writes a stand-in of the backbone (the configuration of DeepSeek-R1-Distill-Qwen-1.5B with random weights) and of both
data sets, and runs each stage with the presets of ``paper.sh``, in a process of its own. OUT has a JSON file for each
stage; those already there are skipped, and a stage that fails stops only those that need it. Prints the table. Random
weights never end a completion, so the stages that generate take their longest. An iteration of reinforcement learning
has four steps. On two GPUs start it twice, with other stages in ``--only``.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ollm_rl.agents.config import RLConfig
from ollm_rl.cli import parse, run
from ollm_rl.experiments.script import positive, start
from ollm_rl.experiments.studies.paper_standin import DISTILL_QWEN, TINY, write_standin
from ollm_rl.files.records import read_rows
from ollm_rl.report.tables import Cell, Table
from ollm_rl.runs import origin, write_atomic

PRESETS = Path(__file__).resolve().parent.parent / "presets"
ROWS = 1408  # solutions: 22 steps of 64
OMNI_MATH = 4428  # problems
FULL_STEPS = {"options": 313, "lora": 313, "forced": OMNI_MATH, "latent": 100, "vocabulary": 100, "eval": 5 * OMNI_MATH}
UNITS = {"forced": "problem", "eval": "problem and model", "latent": "iteration", "vocabulary": "iteration"}
NEEDS = {"forced": ("options", "lora"), "latent": ("options",), "vocabulary": ("options",), "eval": ("options",)}
WARM_UP = 2  # steps that do not count
ITERATION = RLConfig.minibatches  # steps of an iteration, as paper_rl.yaml leaves it


def ollm(*words: Any) -> float:
    """Seconds of a command."""
    started = time.perf_counter()
    run(*parse([str(word) for word in words]))
    return time.perf_counter() - started


class Stages:
    """The stages; each method returns the seconds of every step or iteration that counts, or of a problem.

    Args:
        out: Folder of the measurement.
        steps: Steps that count.
        tiny: Whether the stand-in is tiny.
    """

    def __init__(self, out: Path, steps: int, *, tiny: bool) -> None:
        self.out, self.steps, self.tiny = out, steps, tiny
        self.standin = out / "standin"
        self.data = f"hf:{self.standin / 'OpenMathReasoning'}"
        self.omni = ["--data", f"hf:{self.standin / 'Omni-MATH'}", "--dtype", "float32" if tiny else "bfloat16"]
        self.model, self.lora_folder = (out / "runs" / name for name in ("options", "lora"))

    def _new_run(self, name: str) -> Path:
        """The folder of a run, empty: seconds of one that was resumed would not count alike."""
        folder = self.out / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _sft(self, name: str, *tiny: Any) -> list[float]:
        folder = self._new_run(name)
        steps = ["--epochs", "null", "--max_steps", WARM_UP + self.steps, "--logging_steps", 1]
        small = ["--batch_size", 2, "--dtype", "float32", *tiny] if self.tiny else []
        words = ["--config", PRESETS / f"paper_{name}.yaml", *steps, "--backbone", self.standin / "model"]
        ollm("sft", *words, "--data", self.data, "--out", folder, *small)
        (events,) = {path.parent for path in folder.rglob("events*")}
        lines = EventAccumulator(str(events)).Reload().Scalars("train/loss")
        seconds: list[float] = np.diff([line.wall_time for line in lines[WARM_UP - 1 :]]).tolist()
        return seconds

    def _rl(self, name: str, *words: Any) -> list[float]:
        """Iterations after the first."""
        folder = self._new_run(name)
        config = ["--config", PRESETS / "paper_rl.yaml", "--iterations", 1 + math.ceil(self.steps / ITERATION)]
        tiny = ["--episodes", 8, "--num_slots", 8, "--max_new_tokens", 8, "--dtype", "float32"] if self.tiny else []
        ollm("train", *config, "--data", self.data, "--model", self.model, "--out", folder, *words, *tiny)
        rows = read_rows(folder / "metrics.json", {"seconds": float})
        seconds: list[float] = np.diff([row["seconds"] for row in rows]).tolist()
        return seconds

    def options(self) -> list[float]:
        """Steps of the options."""
        return self._sft("options", "--options.width", 8)

    def lora(self) -> list[float]:
        """Steps of the LoRA."""
        return self._sft("lora", "--gradient_accumulation_steps", 2)

    def forced(self) -> list[float]:
        """A problem of the teacher-forced evaluation."""
        count = 4 if self.tiny else 128
        model = ["--model", self.model, "--lora", self.lora_folder]
        return [ollm("teacher-forced", *model, *self.omni, "--limit", count) / count]

    def latent(self) -> list[float]:
        """Iterations over options."""
        return self._rl("latent", "--policy", "latent")

    def vocabulary(self) -> list[float]:
        """Iterations over tokens."""
        return self._rl("vocabulary", "--action_space", "tokens", "--learning_rate", 1e-4)

    def eval(self) -> list[float]:
        """A problem answered by the policy over options."""
        count, tokens = (4, 8) if self.tiny else (192, 8192)
        limits = ["--limit", count, "--max_new_tokens", tokens, "--num_slots", count]
        return [ollm("eval", "--model", self.model, *self.omni, *limits) / count]


def measure(name: str, args: argparse.Namespace) -> None:
    """Measure one stage and write its file."""
    cuda = torch.cuda.is_available()
    seconds = getattr(Stages(args.out, args.steps, tiny=args.tiny), name)()
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
    device = torch.cuda.get_device_name() if cuda else "CPU"
    result = {
        "seconds": statistics.median(seconds),
        "lowest": min(seconds),
        "highest": max(seconds),
        "peak_gb": peak,
        "device": device,
        "tiny": args.tiny,
        **origin(),
    }
    write_atomic(args.out / f"{name}.json", json.dumps(result, indent=1))


def ended_well(name: str, args: argparse.Namespace) -> bool:
    """Measure one stage in a process of its own, whose memory starts at 0."""
    stage = multiprocessing.get_context("spawn").Process(target=measure, args=(name, args))
    stage.start()
    stage.join()
    return not stage.exitcode


def measure_missing(args: argparse.Namespace) -> list[str]:
    """Measure the stages without a file; returns those that failed, and those that need one without a file."""

    def measured(name: str) -> bool:
        return (args.out / f"{name}.json").exists()

    return [
        name
        for name in args.only
        if not measured(name) and not (all(map(measured, NEEDS.get(name, ()))) and ended_well(name, args))
    ]


def write_once(out: Path, *, tiny: bool) -> None:
    """Write the stand-ins, unless this or another process has done so."""
    whole, own = out / "standin", out / f"standin-{os.getpid()}"
    if whole.exists():
        return
    config, lengths = (TINY, (40, 100)) if tiny else (DISTILL_QWEN, (2000, 8000))
    write_standin(own, config, lengths, 16 if tiny else ROWS)
    try:
        own.rename(whole)
    except OSError:  # another process, started at the same time, was faster
        if not whole.exists():
            raise
        shutil.rmtree(own)


def table(folder: Path) -> Table:
    """Hours and memory of the stages that are measured."""
    rows: list[list[Cell]] = []
    total = 0.0
    for name, count in FULL_STEPS.items():
        with contextlib.suppress(FileNotFoundError):
            result = json.loads((folder / f"{name}.json").read_text())
            hours = result["seconds"] * count / 3600
            total += hours
            memory = "–" if result["peak_gb"] is None else f"{result['peak_gb']:.1f}"
            unit = f"{count:,} x {UNITS.get(name, 'step')}"
            each = f"{result['seconds']:.2f}"
            if result["lowest"] < result["highest"]:
                each += f" ({result['lowest']:.2f}, {result['highest']:.2f})"
            rows.append([name, each, unit, f"{hours:.2f}", memory, result["device"]])
    note = (
        f"{total:.2f} hours in all. Loading counts in the evaluations, and comes on top of the rest. Random weights, "
        "so completions have their longest length."
    )
    return Table(
        "Cost", note, ["stage", "seconds each (lowest, highest)", "times", "hours", "peak memory, GB", "device"], rows
    )


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=positive, default=20, help="steps of a stage that count")
    parser.add_argument("--only", nargs="+", default=tuple(FULL_STEPS), choices=FULL_STEPS, help="stages")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short texts, to try this script")
    args = parser.parse_args()
    if not all((args.out / f"{name}.json").exists() for name in args.only):
        write_once(args.out, tiny=args.tiny)
    failed = measure_missing(args)
    print(table(args.out).markdown())
    if failed:
        raise SystemExit(
            f"failed, or in need of a stage without a file: {', '.join(failed)}; the same command tries them again"
        )


if __name__ == "__main__":
    start(main)
