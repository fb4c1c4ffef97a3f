"""Print the results of a folder of runs as Markdown tables: ``python -m ollm_rl.experiments.studies.table OUT``.

Reads OUT/teacher_forced-*.json, OUT/eval and OUT/NAME/metrics.json as ``smollm2_gsm8k.sh`` writes them.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from ollm_rl.errors import MissingError
from ollm_rl.experiments.script import start
from ollm_rl.metrics.statistics import rank


def read(path: Path) -> Any:
    """Content of a JSON file; None if it does not exist."""
    return json.loads(path.read_text()) if path.exists() else None


def interval_text(interval: list[float] | None) -> str:
    """``[value, low, high]`` as text."""
    return "–" if interval is None else "{:.3f} ({:.3f} to {:.3f})".format(*interval)


def show(out: Path) -> None:
    """Print teacher-forced results, one line per method, and seconds per iteration."""
    if not (out / "eval").is_dir():
        raise MissingError(f"{out} holds no folder eval; give the OUT of smollm2_gsm8k.sh")
    for path in sorted(out.glob("teacher_forced-*.json")):
        forced = read(path)
        measures = ("token_accuracy", "nll", "answer_correct", "information", "gain_per_nat")
        print(f"| {path.stem} | {' | '.join(measures).replace('_', ' ')} |\n|{'---|' * (1 + len(measures))}")
        for name, scores in forced["columns"].items():
            print(f"| {name} | {' | '.join(interval_text(scores.get(measure)) for measure in measures)} |")
        print(f"\nThe oracle's gain over the backbone is {interval_text(forced['nll_gain'])} nats per token.")
        print("| options | |\n|---|---|")
        for name, value in forced["options"].items():
            print(f"| {name.replace('_', ' ')} | {interval_text(value)} |")
        print(f"\n{forced['num_problems']} problems\n")
    print(
        "| method | accuracy | 95 % interval | tokens | switching | degeneracy | reward, first and last 3 iterations |"
    )
    print("|---|---|---|---|---|---|---|")
    intervals = {}
    for path in sorted((out / "eval").glob("*.json")):
        if path.stem == "results":
            continue
        result = read(path)
        name = Path(result["model"]).name
        history = read(out / name / "metrics.json")
        intervals[name] = (result["low"], result["high"])
        trained = "reward" in (history or [{}])[0]
        means = (
            [statistics.mean(row["reward"] for row in rows) for rows in (history[:3], history[-3:])] if trained else []
        )
        print(
            f"| {name} | {result['accuracy']:.3f} | {result['low']:.3f} to {result['high']:.3f} "
            f"| {result['completion_tokens']:.0f} | {result['language_switching_rate']:.3f} "
            f"| {result['degeneracy_rate']:.3f} | {', '.join(f'{mean:.3f}' for mean in means)} |"
        )
    print(f"\nRanking supported by the intervals: {' > '.join(', '.join(group) for group in rank(intervals))}")
    print("\n| run without others on the GPU | seconds per iteration | rollout | update |\n|---|---|---|---|")
    for path in sorted(out.glob("timing-*")):
        rows = read(path / "metrics.json")[1:]  # the first iteration warms up
        rollout, update = (statistics.median(row[f"seconds_{part}"] for row in rows) for part in ("rollout", "update"))
        print(f"| {path.name} | {rollout + update:.2f} | {rollout:.2f} | {update:.2f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    show(parser.parse_args().out)


if __name__ == "__main__":
    start(main)
