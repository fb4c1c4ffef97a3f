"""One GPU against several of a host: supervised training, learning of the vocabulary, and rollouts of Ray workers.

python -m ollm_rl.experiments.bench.gpus --model OPTIONS --json FILE

Every measurement is a command of its own with fresh processes. One GPU and several take turns (A B A B). Steps and
iterations of the warm-up do not count. Supervised training and the learner run under torchrun, a process per GPU;
the workers are those of ``--workers N --gpus_per_worker 1``, beside a learner on the first GPU. With ``--device cpu``
processes of one thread stand for GPUs, which only shows that it works.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from ollm_rl.experiments.script import positive, start
from ollm_rl.runs import origin, write_atomic

CASES = ("sft-options", "sft-backbone", "sft-lora", "learner", "workers")
# Per iteration. After a worker's last refill the longest episode decides how many steps follow, however many workers
# there are, and a pass of an update that is recorded takes as long as a full one. So few episodes hide what a second
# GPU gives.
EPISODES = {"learner": 4096, "workers": 8192}
Figures = dict[str, float]
Measured = dict[str, dict[str, list[Figures]]]  # by case and number of GPUs


def run(arguments: list[str], *, processes: int, gpus: int, device: str) -> None:
    """Run an ``ollm-rl`` command in some processes that see some GPUs; its output is shown if it fails."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "ollm_rl.cli", *arguments, "--device", device]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")[:gpus]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(visible)}
    if device == "cpu":
        environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout[-4000:]}")


def measure_sft(stage: str, out: Path, gpus: int, args: argparse.Namespace) -> Figures:
    """Solutions per second of a stage, by the times of its lines of metrics, and its last loss."""
    steps = args.warm_up_steps + args.steps
    words = ["sft", "--stage", stage, "--backbone", args.backbone, "--data", args.sft_data, "--dtype", args.dtype]
    words += ["--batch_size", str(args.batch_size), "--max_steps", str(steps), "--out", str(out)]
    words += ["--logging_steps", str(args.warm_up_steps), "--save_steps", str(steps)]
    run(words, processes=gpus, gpus=gpus, device=args.device)
    (folder,) = {path.parent for path in out.rglob("events*")}
    lines = EventAccumulator(str(folder)).Reload().Scalars("train/loss")
    seconds = (lines[-1].wall_time - lines[0].wall_time) / (lines[-1].step - lines[0].step)
    return {"solutions_per_second": args.batch_size / seconds, "seconds_per_step": seconds, "loss": lines[-1].value}


def measure_training(case: str, words: list[str], out: Path, args: argparse.Namespace, **placed: Any) -> Figures:
    """Episodes and tokens per second of a training run's iterations after the first ones, and their parts."""
    episodes = EPISODES[case] if args.episodes is None else args.episodes
    iterations = args.warm_up_iterations + args.iterations
    words = ["train", "--model", args.model, "--data", args.data, "--dtype", args.dtype, "--out", str(out), *words]
    words += ["--iterations", str(iterations), "--episodes", str(episodes), "--num_slots", str(args.num_slots)]
    words += ["--max_new_tokens", str(args.max_new_tokens)]
    run(words, device=args.device, **placed)
    rows = json.loads((out / "metrics.json").read_text())[args.warm_up_iterations :]
    parts = {name: statistics.median(row[f"seconds_{name}"] for row in rows) for name in ("rollout", "update")}
    tokens = statistics.mean(row["completion_tokens"] for row in rows) * episodes
    total = parts["rollout"] + parts["update"]
    return {
        "episodes": episodes,
        "episodes_per_second": episodes / total,
        "tokens_per_second": tokens / total,
        "rollout_episodes_per_second": episodes / parts["rollout"],
        "rollout_tokens_per_second": tokens / parts["rollout"],
        "seconds_rollout": parts["rollout"],
        "seconds_update": parts["update"],
        "seconds_communication": statistics.median(row["seconds_communication"] for row in rows),
        "reward": rows[-1]["reward"],
    }


def measure(case: str, out: Path, gpus: int, args: argparse.Namespace) -> Figures:
    """One measurement of a case on some GPUs."""
    if case.startswith("sft-"):
        return measure_sft(case.removeprefix("sft-"), out, gpus, args)
    if case == "learner":
        words = ["--action_space", "tokens", "--learning_rate", "1e-4"]
        return measure_training(case, words, out, args, processes=gpus, gpus=gpus)
    words = ["--workers", str(gpus)] + (["--gpus_per_worker", "1"] if args.device == "cuda" else [])
    return measure_training(case, words, out, args, processes=1, gpus=gpus)


def rounds(args: argparse.Namespace) -> Iterator[Measured]:
    """Yield all figures so far after every measurement."""
    measured: Measured = {case: {"one": [], "several": []} for case in args.cases}
    turns = [(case, name) for _ in range(args.rounds) for case in args.cases for name in ("one", "several")]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for number, (case, name) in enumerate(bar := tqdm(turns)):
            bar.set_description(f"{case}, {name}")
            gpus = 1 if name == "one" else args.gpus
            measured[case][name].append(measure(case, Path(folder) / str(number), gpus, args))
            yield measured


def table(measured: Measured, gpus: int) -> str:
    """Medians over rounds as a Markdown table, with the lowest and highest round of the ratio."""
    lines = [f"| case | figure | 1 GPU | {gpus} GPUs | ratio (lowest, highest round) |", "|---|---|---|---|---|"]
    for case, by_gpus in measured.items():
        for figure in by_gpus["one"][0]:
            one, several = ([each[figure] for each in by_gpus[name]] for name in ("one", "several"))
            ratios = [b / a if a else float("nan") for a, b in zip(one, several, strict=True)]
            numbers = f"{statistics.median(one):,.4g} | {statistics.median(several):,.4g}"
            spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}, {max(ratios):.3f})"
            lines.append(f"| {case} | {figure} | {numbers} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the figures after every measurement, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="options to train a policy over (learner and workers)")
    parser.add_argument("--data", default="arith", help="problems of learner and workers")
    parser.add_argument("--backbone", default="tiny-arith", help="backbone of supervised training")
    parser.add_argument("--sft-data", default="arith", help="solutions of supervised training")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--gpus", type=positive, default=2)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--batch-size", type=positive, default=64, help="solutions per step")
    parser.add_argument("--warm-up-steps", type=positive, default=20)
    parser.add_argument("--steps", type=positive, default=80, help="steps that count; a multiple of the warm-up's")
    parser.add_argument(
        "--episodes",
        type=positive,
        help="episodes per iteration; if left out, 4096 for the learner and 8192 for the workers. Few hide what a "
        "second GPU gives, because the slots of each process empty until its longest last episode ends",
    )
    parser.add_argument("--num-slots", type=positive, default=256, help="of every worker or process")
    parser.add_argument("--max-new-tokens", type=positive, default=96)
    parser.add_argument("--warm-up-iterations", type=int, default=2)
    parser.add_argument("--iterations", type=positive, default=6, help="iterations that count")
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--folder", type=Path, help="existing folder for the runs, which are removed; else a temporary")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    if args.model is None and {"learner", "workers"} & set(args.cases):
        parser.error("--model is needed by the cases learner and workers")
    if args.steps % args.warm_up_steps:
        parser.error(f"--steps {args.steps} is no multiple of --warm-up-steps {args.warm_up_steps}")
    settings = {name: str(value) for name, value in vars(args).items()}
    measured: Measured = {}
    for measured in rounds(args):
        if args.json:
            write_atomic(args.json, json.dumps({"cases": measured, "settings": settings, **origin()}, indent=1))
    print(table(measured, args.gpus))


if __name__ == "__main__":
    start(main)
