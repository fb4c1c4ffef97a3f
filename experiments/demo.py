"""The whole pipeline on the embedded default.

The stages are option SFT, reinforcement learning by the presets in ``METHODS`` with equally many episodes, evaluation
on held-out problems, and the report. Every stage is a separate run below ``out`` and resumes where it stopped.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.evaluation.config import EvalConfig
from ollm_rl.agents.evaluation.free_running import run_eval
from ollm_rl.agents.evaluation.reporting import report_methods
from ollm_rl.agents.training.trainer import train
from ollm_rl.experiments.config import DemoConfig
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from ollm_rl.report.page import format_table
from ollm_rl.runs import exclusive_run, origin, write_atomic
from ollm_rl.settings import expect

BACKBONE = "tiny-arith"
METHODS = ("latent", "anchored", "vocabulary")
STAGES = len(METHODS) + 2  # before them the options, after them evaluation and report
PRESETS = Path(__file__).parent / "presets"


def run_demo(config: DemoConfig) -> Path:
    """Run all stages, print the table, and return the report's path.

    Raises:
        UsageError: If the folder holds a different run.
    """
    expect(config, DemoConfig)
    with exclusive_run(config.out, "demo", config):
        return _run_stages(config)


def _run_stages(config: DemoConfig) -> Path:
    _head(1, "options: the plug-in learns from worked solutions")
    options = run_sft(
        SFTConfig(out=config.out / "options", backbone=BACKBONE, max_steps=config.sft_steps, seed=config.seed)
    )
    runs = {}
    for stage, method in enumerate(METHODS, start=2):
        settings = _method(config, method, options)
        episodes = settings.iterations * settings.episodes
        _head(stage, f"{method}: reinforcement learning, {episodes:,} episodes")
        runs[method] = train(settings)
    methods = {
        "option model": [str(options)],
        **{name: [str(run)] for name, run in runs.items()},
        "backbone": [BACKBONE],
    }
    _head(STAGES, f"evaluation on {config.problems:,} held-out problems, and the report")
    results = _evaluate(config, [model for (model,) in methods.values()])
    rows = report_methods(config.out / "report.html", methods, results)
    summary = {"methods": rows, "seed": config.seed, "num_problems": config.problems, **origin()}
    write_atomic(config.out / "summary.json", json.dumps(summary, indent=1))
    print(format_table(rows))
    return config.out / "report.html"


def _head(stage: int, title: str) -> None:
    """Say which stage begins."""
    print(f"\n[{stage} of {STAGES}] {title}", flush=True)


def _method(config: DemoConfig, name: str, options: Path) -> RLConfig:
    """Settings of a method's run: its preset, with as many whole iterations as fit the episodes, at least one."""
    settings = yaml.safe_load((PRESETS / f"tiny_arith_{name}.yaml").read_text())
    settings["iterations"] = max(1, config.episodes // settings["episodes"])
    return RLConfig(out=config.out / name, model=str(options), seed=config.seed, **settings)


def _evaluate(config: DemoConfig, models: list[str]) -> list[dict[str, Any]]:
    """Greedy evaluation. The result is stored below ``out``, where a resumed demo reads it."""
    return run_eval(EvalConfig(model=models, out=config.out / "eval", limit=config.problems, seed=config.seed))
