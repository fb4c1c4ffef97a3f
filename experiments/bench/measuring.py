"""Processor time of measuring a completion, in this checkout against another one: A B A B.

python -m ollm_rl.experiments.bench.measuring DATA --against CHECKOUT --run RUN

DATA is the folder of `detectors`, CHECKOUT a folder with another commit (``git worktree add CHECKOUT COMMIT``), RUN
that of an ``ollm-rl train``. Each measures language switching and degeneracy in a process of its own, first in
CHECKOUT, then here, round by round; the results are compared. Caches are empty at first, and every text is measured
once: solutions of which the prompt is new, others of which it was seen before, as within a group, and the completions
of RUN in their order. Set OMP_NUM_THREADS=1.
"""

import argparse
import json
import operator
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ollm_rl.agents.completions import Measured, read_completions
from ollm_rl.experiments.script import positive, start
from ollm_rl.metrics.language import detect_language
from ollm_rl.problems.sources import load_problems

SOLUTIONS = 256  # per kind

Text = tuple[str, str]  # question and completion


def texts(data: Path, run: Path) -> dict[str, list[Text]]:
    """Questions and completions of every kind, in their order."""
    kinds: dict[str, list[Text]] = {}
    for name in ("gsm8k_train", "math_train"):
        problems = load_problems(f"jsonl:{data / name}.jsonl", limit=2 * SOLUTIONS)
        pairs = [(problem.question, problem.solution) for problem in problems]
        kinds[f"{name}, new prompts"] = pairs[:SOLUTIONS]
        kinds[f"{name}, known prompts"] = pairs[SOLUTIONS:]
    exemplars = load_problems(f"jsonl:{data / 'mgsm_exemplars'}.jsonl")
    kinds["mgsm_exemplars"] = [(problem.question, problem.solution) for problem in exemplars]
    kinds["completions of the run"] = [(row["question"], row["completion"]) for row in read_completions(run)]
    return kinds


def measure(data: Path, run: Path) -> dict[str, Any]:
    """Milliseconds per completion, and what was measured, by kind."""
    for problem in load_problems(f"jsonl:{data / 'mgsm_dev'}.jsonl", limit=SOLUTIONS):
        detect_language(problem.question)  # loads the models
    measured = {}
    for kind, pairs in texts(data, run).items():
        if "known" in kind:
            for question, _ in pairs:
                Measured.of(question, "There are 7.", terminated=True)
        begun = time.process_time()
        results = [Measured.of(question, text, terminated=True) for question, text in pairs]
        seconds = time.process_time() - begun
        found = [[*result.switching, *sorted(result.flags)] for result in results]
        measured[kind] = {"ms": 1000 * seconds / len(pairs), "found": found}
    return measured


def in_checkout(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What `measure` returns with the package of a checkout."""
    command = [sys.executable, __file__, str(args.data), "--run", str(args.run), "--child"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """Measure and print a Markdown table of medians over the rounds, and of the most results that differ in one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the problems")
    parser.add_argument("--against", type=Path, help="folder with another commit")
    parser.add_argument("--run", type=Path, required=True, help="folder of an ollm-rl train")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.data, args.run)))
        return
    if args.against is None or not (args.against / "ollm_rl").is_dir():
        parser.error(f"--against {args.against} has no ollm_rl; give a checkout (git worktree add FOLDER COMMIT)")
    here = Path(__file__).resolve().parents[2]
    rounds = [(in_checkout(args.against.resolve(), args), in_checkout(here, args)) for _ in range(args.rounds)]
    print("| texts | number | ms, other | here | ratio (lowest, highest) | different |\n|---|---|---|---|---|---|")
    for kind, first in rounds[0][0].items():
        other, ours = ([pair[side][kind]["ms"] for pair in rounds] for side in (0, 1))
        ratios = [one / two for one, two in zip(other, ours, strict=True)]
        found = [[side[kind]["found"] for side in pair] for pair in rounds]
        different = max(sum(map(operator.ne, *pair)) for pair in found)
        print(
            f"| {kind} | {len(first['found']):,} | {statistics.median(other):.2f} | {statistics.median(ours):.2f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f}) | {different} |"
        )


if __name__ == "__main__":
    start(main)
