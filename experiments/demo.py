"""The whole pipeline on the embedded default.

The stages are option SFT, latent PPO and REINFORCE, the vocabulary baseline, evaluation on held-out problems, and the
report. Every stage is a separate run below ``out`` and resumes where it stopped.
"""

import json
from pathlib import Path
from typing import Any

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.evaluation.config import EvalConfig
from ollm_rl.agents.evaluation.free_running import run_eval
from ollm_rl.agents.evaluation.reporting import report_methods
from ollm_rl.agents.training.trainer import train
from ollm_rl.experiments.config import DemoConfig
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from ollm_rl.report.page import format_table
from ollm_rl.runs import open_run, origin, write_atomic

BACKBONE = "tiny-arith"
VOCABULARY_RATES = (3e-4, 1e-3, 3e-3)  # learning rates of the baseline; validation accuracy chooses one


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
    validated = _evaluate(config, [str(run) for run in vocabulary.values()], "validation")
    best = max(validated, key=lambda result: result["accuracy"])["model"]
    methods = {
        "frozen-option-model": [str(options)],
        **{name: [str(run)] for name, run in {**latent, **vocabulary}.items()},
        "backbone-greedy": [BACKBONE],
    }
    evaluated = [str(options), *map(str, latent.values()), best, BACKBONE]
    results = _evaluate(config, evaluated, "test")
    rows = report_methods(config.out / "report.html", methods, results)
    summary = {"methods": rows, "seed": config.seed, "num_problems": config.problems, **origin()}
    write_atomic(config.out / "summary.json", json.dumps(summary, indent=1))
    print(format_table(rows))
    return config.out / "report.html"


def _rl(config: DemoConfig, name: str, options: Path, **settings: Any) -> RLConfig:
    """Settings of one run; problems, episodes and updates are the same for all runs."""
    return RLConfig(
        out=config.out / name, model=str(options), iterations=config.iterations, seed=config.seed, **settings
    )


def _evaluate(config: DemoConfig, models: list[str], split: str) -> list[dict[str, Any]]:
    """Greedy evaluation. The result is stored below ``out``, where a resumed demo reads it."""
    out = config.out / f"eval-{split}"
    return run_eval(EvalConfig(model=models, out=out, split=split, limit=config.problems, seed=config.seed))
