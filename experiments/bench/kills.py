"""Kill commands with SIGKILL at random moments, start them again, and compare what they leave with an undisturbed run.

python -m ollm_rl.experiments.bench.kills --out runs/kills --kills 20
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ollm_rl.experiments.script import positive, start
from ollm_rl.runs import origin, write_atomic

SFT = "--max_steps 12 --batch_size 8 --limit 64 --save_steps 2 --logging_steps 1 --device cpu"
SETTINGS = {
    "sft": SFT,
    "backbone": f"{SFT} --stage backbone",
    "train": "--model {options} --iterations 8 --episodes 32 --max_new_tokens 24 --device cpu",
    "tokens": "--model {options} --action_space tokens --iterations 4 --episodes 32 --max_new_tokens 24 --device cpu",
    "eval": "--model {options} --limit 128 --num_slots 4 --max_new_tokens 32 --device cpu",
    "sweep": "--config {out}/sweep.yaml",
}
COMMANDS = {"backbone": "sft", "tokens": "train"}  # of cases that are not named after their command
SWEEP = """
train: {{model: {options}, iterations: 6, episodes: 32, max_new_tokens: 16}}
grid: {{learning_rate: [0.001, 0.003]}}
seeds: [0]
"""
# What may differ: times and checksums over them, where and how it was run, and files made from the others.
VOLATILE = ("command", "commit", "machine", "versions", "places", "eval_seconds", "sha256")
# SHA256SUMS also covers training_args.bin; the files that it names are compared themselves.
LEFT_OUT = (
    *("events.out*", "*.lock", "report.html", "*.parquet", "run.json"),
    *("training_args.bin", "rng_state.pth", "SHA256SUMS"),
)


def main() -> None:
    """Run every case, print and save what differs, and exit with 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="new folder for all runs")
    parser.add_argument("--kills", type=positive, default=20, help="kills of each case")
    parser.add_argument("--cases", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"--out {args.out} exists already; give a new folder")
    args.out.mkdir(parents=True)
    options = args.out / "sft"  # what the other cases use
    (args.out / "sweep.yaml").write_text(SWEEP.format(options=options))
    draw, results = random.Random(args.seed), []
    for case in dict.fromkeys(["sft", *args.cases]):
        command = [COMMANDS.get(case, case), *SETTINGS[case].format(options=options, out=args.out).split()]
        started = time.monotonic()
        if run(command, args.out / case):
            sys.exit(f"{case} failed undisturbed")
        duration = time.monotonic() - started
        if case not in args.cases:
            continue
        differences: list[str] = []
        rounds, kills = 0, 0
        while kills < args.kills:
            folder = args.out / f"{case}-{rounds}"
            kills += until_done(command, folder, args.kills - kills, duration, draw)
            differences += [f"{folder.name}/{name}" for name in differing(args.out / case, folder)]
            rounds += 1
        results.append({"case": case, "kills": kills, "runs": rounds, "seconds": duration, "differences": differences})
        print(f"{case}: {kills} kills of {rounds} runs, different: {', '.join(differences) or 'nothing'}", flush=True)
        write_atomic(args.out / "kills.json", json.dumps({"cases": results, **origin()}, indent=1))
    sys.exit(any(result["differences"] for result in results))


def run(command: list[str], out: Path, seconds: float | None = None) -> int:
    """Run a command, and kill it after some seconds unless it has ended; returns its exit code."""
    with (out.parent / f"{out.name}.log").open("ab") as log:
        arguments = [sys.executable, "-m", "ollm_rl.cli", *command, "--out", str(out)]
        process = subprocess.Popen(arguments, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def until_done(command: list[str], out: Path, most: int, duration: float, draw: random.Random) -> int:
    """Start a command until it has ended by itself, and kill it at most so many times; returns the number of kills."""
    for kills in range(most + 1):
        code = run(command, out, draw.uniform(0, duration) if kills < most else None)
        if code >= 0:
            break
    if code:
        sys.exit(f"{out} ended with {code} after {kills} kills; see {out.name}.log")
    return kills


def differing(expected: Path, found: Path) -> list[str]:
    """Names of the files in two folders that differ, or that only one of them has."""
    one, other = (dict(readable(folder)) for folder in (expected, found))
    return sorted(name for name in one.keys() | other.keys() if not same(one.get(name), other.get(name)))


def readable(folder: Path) -> Iterator[tuple[str, Any]]:
    """Names and contents of the files of a run that another run with equal settings has too."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name.startswith("tune/") or any(path.match(pattern) for pattern in LEFT_OUT):
            continue
        if path.suffix == ".json":
            yield name, steady(json.loads(path.read_text()))
        elif path.suffix == ".safetensors":
            yield name, load_file(path)
        elif path.suffix == ".pt":
            yield name, steady(torch.load(path, weights_only=True))
        elif path.suffix == ".csv":
            yield name, [steady(row) for row in csv.DictReader(path.open())]
        else:
            yield name, path.read_bytes()


def steady(value: Any) -> Any:
    """A value without times and origin."""
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if not str(k).startswith("seconds") and k not in VOLATILE}
    return [steady(item) for item in value] if isinstance(value, list | tuple) else value


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other or (one != one and other != other))  # or both are NaN


if __name__ == "__main__":
    start(main)
