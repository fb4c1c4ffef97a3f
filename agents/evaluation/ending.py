"""What the command line says when an evaluation, an audit or a page is finished."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ollm_rl.agents.evaluation.config import AuditConfig, EvalConfig, ExploreConfig, ReportConfig
from ollm_rl.agents.evaluation.results import TABLE_FILE
from ollm_rl.backbones.names import resolve
from ollm_rl.report.ending import counted, ending, opening, problems_of


def eval_ending(results: Sequence[dict[str, Any]], config: EvalConfig) -> str:
    """The best accuracy, where the results lie, and the command that comes next."""
    best = max(results, key=lambda result: result["accuracy"])
    highest = "highest accuracy" if len(results) > 1 else "accuracy"
    models = [resolve(name) for name in config.model]
    source = problems_of(config.data[0])
    runs = [str(model.folder) for model in models if model.kind == "run"]  # a checkpoint's is its run's
    if runs := list(dict.fromkeys(runs)):
        following = ["report", *runs, *(["--results", config.out] if config.out else [])]
    elif plug_ins := [model.name for model in models if model.has_options]:
        following = ["train", "--model", plug_ins[0], "--out", "runs/policy", *source]
    else:
        following = ["sft", "--backbone", config.model[0], "--out", "runs/options", *source]
    return ending(
        f"{highest} {best['accuracy']:.1%} ({best['model']} on {best['data']})",
        config.out and config.out / TABLE_FILE,
        ["ollm-rl", *following],
    )


def report_ending(page: Path, config: ReportConfig) -> str:
    """How many runs were compared, where the page lies, and how it is opened."""
    return ending(f"report of {counted(len(config.runs), 'run')}", page, opening(page))


def explore_ending(page: Path, config: ExploreConfig) -> str:
    """Whose options the page shows, where it lies, and how it is opened."""
    return ending(f"options of {config.model}", page, opening(page))


def audit_ending(result: dict[str, Any], config: AuditConfig) -> str:
    """How many verdicts are in doubt, where the result lies, and the command that comes next."""
    doubted = counted(len(result["disagreements"]), "disagreement")
    following = ["ollm-rl", "report", config.run] if config.run.is_dir() else []
    return ending(f"{doubted} in {counted(result['num_completions'], 'completion')}", config.out, following)
