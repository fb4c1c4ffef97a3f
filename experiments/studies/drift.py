"""How far completions drift in long training: language switching, degeneracy, likelihood, beside the reward.

python -m ollm_rl.experiments.studies.drift --config experiments/presets/tiny_arith_drift.yaml --out OUT

Takes the settings of ``ollm-rl compare`` and runs every method on every seed, without tuning and without Ray. A
finished run is evaluated on test problems (sampled), and each completion, of training and of the test, gets its mean
log-probability under the backbone. OUT/runs has a folder per run and, once it is done, a Parquet file; runs already
done are skipped, and one that was interrupted resumes. Several processes may share OUT: each takes runs that no other
works on. OUT/drift.parquet has one row per completion of the runs that are done, from which `drift_tables` makes table
and figure.
"""

import sys
from functools import partial
from typing import Any

import pandas as pd
import torch

from ollm_rl.agents.completions import Row, read_completions
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.evaluation.free_running import evaluate
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.agents.training.problems import refuse_training_problems
from ollm_rl.agents.training.trainer import train
from ollm_rl.backbones.loading import load_backbone
from ollm_rl.backbones.names import resolve
from ollm_rl.cli import parse
from ollm_rl.devices import resolve_device
from ollm_rl.experiments.config import CompareConfig
from ollm_rl.experiments.script import start, write_if_free
from ollm_rl.experiments.studies.drift_tables import drift_text
from ollm_rl.experiments.studies.likelihood import log_likelihoods
from ollm_rl.experiments.tuning import method_config
from ollm_rl.problems.sources import load_problems
from ollm_rl.runs import write_atomic
from ollm_rl.streams import Purpose, torch_generator

DRIFT_FILE = "drift.parquet"


def after_training(run: RLConfig, config: CompareConfig, device: torch.device) -> list[Row]:
    """Sampled completions of the trained policy on the test problems, the same for all runs."""
    source = config.eval_data or run.data
    split = config.eval_split or "test"
    columns = run.columns if config.eval_data is None else config.eval_columns
    problems = load_problems(source, split=split, columns=columns, limit=config.eval_limit)
    policy, tokenizer = load_policy(str(run.out), dtype=getattr(torch, run.dtype), device=device)
    rows: list[Row] = evaluate(
        policy,
        tokenizer,
        problems,
        max_new_tokens=run.max_new_tokens,
        num_slots=run.num_slots,
        generator=torch_generator(run.seed, Purpose.EVALUATION),
        name=f"{run.out.name}, test",
    )["completions"]
    return rows


def measure(method: str, run: RLConfig, config: CompareConfig) -> bytes:
    """Train a run, or resume it, and measure all its completions, one row each in the order they were written.

    Returns:
        The Parquet file of the rows.
    """
    device = resolve_device(run.device)
    train(run)
    parts = {"train": read_completions(run.out), "test": after_training(run, config, device)}
    backbone, tokenizer = load_backbone(resolve(run.model).backbone, dtype=getattr(torch, run.dtype), device=device)
    frames = []
    for part, rows in parts.items():
        columns: dict[str, Any] = {
            "method": method,
            "seed": run.seed,
            "part": part,
            "correct": [row["correct"] for row in rows],
            "switched": pd.array([row["switched"] for row in rows], dtype="boolean"),  # missing: cannot be told
            "flags": [",".join(row["flags"]) for row in rows],
            "tokens": pd.array([row["tokens"] for row in rows], dtype="int32"),
            "log_prob": pd.array(log_likelihoods(backbone, tokenizer, rows), dtype="float32"),
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True).to_parquet(index=False)


def study(arguments: list[str]) -> None:
    """Run what is missing, seed by seed; then write the Parquet file of what is done and print the tables."""
    config: CompareConfig = parse(["compare", *arguments])[1]
    runs = config.out / "runs"
    if config.eval_data is None:
        for method in config.methods:
            first = method_config(config, method, {}, config.seeds[0], runs)
            refuse_training_problems(first, config.eval_split or "test", "the study")
    runs.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in config.seeds:  # so that what is done early can be compared
        for method in config.methods:
            path = runs / f"{method}-seed{seed}.parquet"
            run = method_config(config, method, {}, seed, runs / path.stem)
            write_if_free(path, partial(measure, method, run, config))
            paths.append(path)
    if missing := [path.stem for path in paths if not path.exists()]:
        print(f"not in the tables: {', '.join(missing)}, at which other processes are at work")
    done = [pd.read_parquet(path) for path in paths if path.exists()]
    if not done:
        return
    frame = pd.concat(done, ignore_index=True)
    names = {"method": "category", "part": "category", "flags": "category", "seed": "int16"}
    write_atomic(config.out / DRIFT_FILE, frame.astype(names).to_parquet(index=False, compression="zstd"))
    print(drift_text(config.out / DRIFT_FILE, config.window, config.thresholds))


def main() -> None:
    """Run the study by the words of the command line."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    study(sys.argv[1:])


if __name__ == "__main__":
    start(main)
