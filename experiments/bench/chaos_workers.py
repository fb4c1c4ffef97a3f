"""Kill random Ray workers of a training run repeatedly, and compare the run with an undisturbed one.

python -m ollm_rl.experiments.bench.chaos_workers --model runs/options --out runs/chaos
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from ollm_rl.agents.completions import read_completions
from ollm_rl.experiments.script import positive, start


def main() -> None:
    """Run both, print what was lost or counted twice, and exit with 1 if there was any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of an option SFT run")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the two runs")
    parser.add_argument("--workers", type=positive, default=2)
    parser.add_argument(
        "--iterations", type=positive, default=60, help="iterations of each run; enough to outlast the kills"
    )
    parser.add_argument("--episodes", type=positive, default=256)
    parser.add_argument("--seconds", type=float, default=180.0, help="duration of the kills")
    parser.add_argument("--every", type=float, default=20.0, help="seconds from one kill to the next")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of workers to kill")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with _train(args, "disturbed") as learner:
        kills = 0
        started = time.monotonic()
        while time.monotonic() < started + args.seconds and learner.poll() is None:
            time.sleep(1)
            due = time.monotonic() > started + (kills + 1) * args.every
            kills += due and _kill_one(learner.pid, draw)
    with _train(args, "undisturbed") as undisturbed:
        pass
    if learner.returncode or undisturbed.returncode:
        sys.exit(f"a run ended with {learner.returncode or undisturbed.returncode}")
    rows, expected = _metrics(args.out / "disturbed"), _metrics(args.out / "undisturbed")
    restarts, _ = (sum(int(row.pop("worker_restarts")) for row in run) for run in (rows, expected))
    written = Counter(row["iteration"] for row in read_completions(args.out / "disturbed"))
    wrong_iterations = [iteration for iteration in range(args.iterations) if written[iteration] != args.episodes]
    print(f"{kills} workers killed, {restarts} replaced, {int(rows[-1]['episodes'])} episodes counted")
    print(f"iterations with episodes lost or written twice: {wrong_iterations or 'none'}")
    print(f"learning curves: {'equal' if rows == expected else 'different'}")
    sys.exit(bool(wrong_iterations) or rows != expected)


def _train(args: argparse.Namespace, name: str) -> "subprocess.Popen[bytes]":
    settings = {
        "model": args.model,
        "out": args.out / name,
        "workers": args.workers,
        "iterations": args.iterations,
        "episodes": args.episodes,
    }
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return subprocess.Popen([sys.executable, "-m", "ollm_rl.cli", "train", *flags])


def _kill_one(learner: int, draw: random.Random) -> bool:
    """Kill a random worker with SIGKILL; returns whether there was one."""
    try:
        processes = psutil.Process(learner).children(recursive=True)
        workers = [process.pid for process in processes if process.name().startswith("ray::Rollout")]
        os.kill(draw.choice(workers), signal.SIGKILL)
    except (
        psutil.NoSuchProcess,
        ProcessLookupError,
        IndexError,
    ):  # the run or worker has ended, or no worker has started
        return False
    return True


def _metrics(out: Path) -> list[dict[str, Any]]:
    """All metrics except times."""
    rows = json.loads((out / "metrics.json").read_text())
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]


if __name__ == "__main__":
    start(main)
