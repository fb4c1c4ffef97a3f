"""The whole pipeline on the embedded default.

Options, latent PPO and REINFORCE, the vocabulary baseline, evaluation on held-out problems, report. Every stage is a
run of its own below ``out`` and goes on where it stopped.
"""

import json
from pathlib import Path
from typing import Any

from ollm_rl.agents.config import EvalConfig, RLConfig
from ollm_rl.agents.evaluate import run_eval
from ollm_rl.agents.trainer import train
from ollm_rl.experiments.config import DemoConfig
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from ollm_rl.report import format_table, write_report
from ollm_rl.runs import open_run, origin, write_atomic

BACKBONE = "tiny-arith"
VOCABULARY_RATES = (3e-4, 1e-3, 3e-3)  # learning rates that the baseline may choose from
SAMPLES = 12  # completions of each method in the report


def run_demo(config: DemoConfig) -> Path:
    """Run all stages, print the table, and return the report's path.

    Raises:
        ValueError: If the folder holds a different run.
    """
    open_run(config.out, "demo", config)
    options = run_sft(
        SFTConfig(
            out=config.out / "options",
            backbone=BACKBONE,
            max_steps=config.sft_steps,
            batch_size=32,
            learning_rate=3e-3,
            seed=config.seed,
        )
    )
    latent = {
        f"latent-{algorithm}": train(_rl(config, f"latent-{algorithm}", options, algorithm=algorithm))
        for algorithm in ("ppo", "reinforce")
    }
    vocabulary = {
        f"vocab-reinforce (lr {rate:g})": train(
            _rl(config, f"vocab-reinforce-{rate:g}", options, action_space="tokens", learning_rate=rate)
        )
        for rate in VOCABULARY_RATES
    }
    best = max(vocabulary.values(), key=lambda run: _evaluate(config, run, "validation")["accuracy"])
    runs = {
        "frozen-option-model": options,
        **latent,
        "vocab-reinforce": best,
        "backbone-greedy": Path(BACKBONE),
    }
    results = {method: _evaluate(config, run, "test") for method, run in runs.items()}
    curves = {name: json.loads((run / "metrics.json").read_text()) for name, run in {**latent, **vocabulary}.items()}
    rows = [_row(method, results[method], runs[method]) for method in runs]
    summary = {"methods": rows, "seed": config.seed, "num_problems": config.problems, **origin()}
    write_atomic(config.out / "summary.json", json.dumps(summary, indent=1))
    samples = [
        {"method": method, **sample} for method, result in results.items() for sample in result["completions"][:SAMPLES]
    ]
    report = config.out / "report.html"
    write_report(report, summary, curves, samples)
    print(format_table(rows))
    return report


def _rl(config: DemoConfig, name: str, options: Path, **settings: Any) -> RLConfig:
    """Settings of one run: the same problems, episodes and updates for all."""
    return RLConfig(
        out=config.out / name, model=str(options), iterations=config.iterations, seed=config.seed, **settings
    )


def _evaluate(config: DemoConfig, run: Path, split: str) -> dict[str, Any]:
    """Greedy evaluation, kept beside the report; a resumed demo reads it again."""
    path = config.out / "eval" / f"{run.name}-{split}.json"
    if not path.exists():
        run_eval(EvalConfig(model=str(run), out=path, split=split, limit=config.problems, seed=config.seed))
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def _row(method: str, result: dict[str, Any], run: Path) -> dict[str, Any]:
    """A line of the table; episodes and seconds are those of reinforcement learning."""
    path = run / "metrics.json"
    trained = json.loads(path.read_text())[-1] if method.startswith(("latent", "vocab")) else {}
    rates = ("accuracy", "low", "high", "language_switching_rate", "degeneracy_rate")
    return {
        "method": method,
        **{name: result[name] for name in rates},
        "episodes": int(trained.get("episodes", 0)),
        "seconds": trained.get("seconds", 0.0),
    }
