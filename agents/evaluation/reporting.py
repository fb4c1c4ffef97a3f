"""What ``ollm-rl report`` and ``ollm-rl explore`` show, read from runs and evaluations."""

import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import torch

from ollm_rl.agents.completions import Row, last_completions
from ollm_rl.agents.evaluation.config import ExploreConfig, ReportConfig
from ollm_rl.agents.evaluation.explorer import ExploredPolicy, explore, option_maps
from ollm_rl.agents.evaluation.groups import group_runs, histories
from ollm_rl.agents.evaluation.learning_rates import unchosen
from ollm_rl.agents.evaluation.results import read_results
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.backbones.names import ModelName, resolve
from ollm_rl.devices import resolve_device
from ollm_rl.errors import UsageError, one_line
from ollm_rl.metrics.statistics import bootstrap_interval
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.prompts import format_prompts
from ollm_rl.report.completions import most_answered
from ollm_rl.report.page import write_explorer, write_report
from ollm_rl.report.plots import t_interval
from ollm_rl.report.tables import Table
from ollm_rl.runs import origin
from ollm_rl.safekeeping.outputs import output_file
from ollm_rl.settings import expect

SAMPLES = 40  # problems whose completions are shown
EXPLORED = 4  # completions in the explorer, for each method with options
MAPPED = 32  # completions in its maps of usage and entropy
RATES = ("language_switching_rate", "degeneracy_rate")

Methods = Mapping[str, Sequence[str]]  # by name, the folder of every seed, or a backbone's name


def run_report(config: ReportConfig) -> Path:
    """Write the report of training runs; see ``report_methods``.

    Raises:
        MissingError: If a folder holds no training run, no metrics, or no results.
        UsageError: If two runs have the same settings and the same seed, or ``out`` cannot be written.
    """
    expect(config, ReportConfig)
    with output_file(config.out):
        return _write_report(config)


def _write_report(config: ReportConfig) -> Path:
    saved = [] if config.results is None else read_results(config.results)
    # A model evaluated under two names of its folder is not two seeds.
    results = list({(_real_path(result["model"]), result["data"]): result for result in saved}.values())
    methods: dict[str, list[str]] = group_runs(config.runs)
    known = {_real_path(folder) for folders in methods.values() for folder in folders}
    for result in results:
        if _real_path(result["model"]) not in known:
            known.add(_real_path(result["model"]))
            methods[_short_name(result["model"], methods)] = [result["model"]]
    report_methods(config.out, methods, results, device=config.device)
    return config.out


def run_explore(config: ExploreConfig) -> Path:
    """Write the option explorer of one prompt.

    Raises:
        MissingError: If the folder holds no model.
        UsageError: If it has no options, the prompt does not fit, or ``out`` cannot be written.
    """
    expect(config, ExploreConfig)
    with output_file(config.out):
        return _write_explorer(config)


def _write_explorer(config: ExploreConfig) -> Path:
    device = resolve_device(config.device)
    policy, tokenizer = load_policy(config.model, dtype=getattr(torch, config.dtype), device=device)
    if not isinstance(policy, ExploredPolicy):
        raise UsageError(
            f"model={config.model!r} has no options to explore; give an option SFT run or a run over options"
        )
    format_prompts(tokenizer, config)
    problem = Problem(id="prompt", question=config.prompt, solution="", answer="", language="")
    explored = explore(policy, tokenizer, [problem], max_new_tokens=config.max_new_tokens)
    write_explorer(config.out, explored, {"model": config.model, **origin()})
    return config.out


def report_methods(
    out: Path,
    methods: Methods,
    results: Sequence[Row],
    *,
    device: str = "auto",
    tables: Sequence[Table] = (),
    metric: str = "reward",
    mode: str = "max",
) -> list[Row]:
    """Write the report of methods.

    Args:
        out: The HTML file.
        methods: Training runs, option SFT runs and backbones.
        results: Results of ``run_eval``; methods without one are left out of the table. If there are none at all, the
            table shows the last iteration of training.
        device: Device of the policies over options.
        tables: Further tables, shown first.
        metric: Decides with ``mode`` between learning rates without validation accuracy, see ``unchosen``.
        mode: "max" or "min".

    Returns:
        The rows of the table, see ``write_report``.
    """
    rows, samples, options = [], [], []
    resolved = {method: [resolve(name) for name in names] for method, names in methods.items()}
    curves = {method: histories(models) for method, models in resolved.items()}
    results_of = {method: _results_of(models, results) for method, models in resolved.items()}
    notes = _notes(resolved, results_of) if results else []
    for method, models in resolved.items():
        own = results_of[method]
        table = _evaluated_rows(models, own) if results else [_trained_row(models, curves[method])]
        rows += [{"method": method, **_spent(curves[method]), **row} for row in table]
        if results and not own:
            continue
        completions = _completions(models[0], own)
        samples += [{"method": method, **row} for row in completions[:SAMPLES]]
        if completions and models[0].has_options:
            explored = _explore(method, models[0], completions, own, device, notes)
            options += [explored] if explored else []
    summary = {
        "methods": rows,
        **_about(resolved, results),
        "notes": notes,
        "unchosen": unchosen(resolved, curves, metric, mode),
        **origin(),
    }
    write_report(out, summary, curves, most_answered(samples, SAMPLES), options, tables)
    return rows


def _results_of(models: Sequence[ModelName], results: Sequence[Row]) -> list[Row]:
    """The results of a method, in the order of its seeds."""
    places = [_real_path(model.name) for model in models]
    return [result for place in places for result in results if _real_path(result["model"]) == place]


def _notes(methods: Mapping[str, Sequence[ModelName]], results_of: Mapping[str, Sequence[Row]]) -> list[str]:
    """What was not evaluated."""
    notes = []
    for method, models in methods.items():
        evaluated = len({_real_path(result["model"]) for result in results_of[method]})
        if 0 < evaluated < len(models):
            notes.append(f"{method} was evaluated on {evaluated} of its {len(models)} seeds.")
    if left_out := [method for method in methods if not results_of[method]]:
        notes.append(f"There are no results for {', '.join(left_out)}: shown only in the plots of training.")
    return notes


def _about(methods: Mapping[str, Sequence[ModelName]], results: Sequence[Row]) -> Row:
    """What the report is about: the problems, whether there are evaluations, and the seeds of training."""
    runs = [model for models in methods.values() for model in models if model.kind == "run"]
    sets = dict.fromkeys(
        f"{result['num_problems']:,} problems of {result['data']} ({result['split']})" for result in results
    )
    return {
        "data": ", ".join(sets) or "problems of the training set",
        "evaluated": bool(results),
        "seeds": sorted({model.description["seed"] for model in runs if "seed" in model.description}),
    }


def _evaluated_rows(models: Sequence[ModelName], results: Sequence[Row]) -> list[Row]:
    """Rates and accuracy of every problem set."""
    by_data: dict[str, list[Row]] = {}
    for result in results:
        by_data.setdefault(result["data"], []).append(result)
    rows = []
    for data, of_data in by_data.items():
        row: Row = {}
        if len(by_data) > 1:
            row["data"] = data
        if len(of_data) == 1:
            row |= {name: of_data[0][name] for name in ("accuracy", "low", "high")}
        else:
            completions = [completion for result in of_data for completion in result["completions"]]
            row |= _interval([result["accuracy"] for result in of_data], completions)
        if models[0].kind == "run":
            row["seeds"] = len(of_data)
        rows.append(row | {name: _mean(of_data, name) for name in RATES})
    return rows


def _trained_row(models: Sequence[ModelName], runs: Sequence[Sequence[Row]]) -> Row:
    """Rates and accuracy of the last iteration of training."""
    last = [rows[-1] for rows in runs]
    completions = [row for model in models if model.folder for row in last_completions(model.folder)]
    return {
        **_interval([metrics["reward_correctness"] for metrics in last], completions),
        **{name: _mean(last, name) for name in RATES},
        "seeds": len(last),
    }


def _interval(accuracies: Sequence[float], completions: Sequence[Row]) -> dict[str, float]:
    """Mean accuracy of the seeds, and the outer ends of two 95 % intervals: over the seeds and over the problems.

    Seeds that agree by chance say nothing about other problems, and Student's interval over them has no width.
    """
    by_question: dict[str, list[float]] = {}
    for row in completions:
        by_question.setdefault(row["question"], []).append(row["correct"])
    mean, *ends = t_interval(accuracies)
    ends += bootstrap_interval([sum(correct) / len(correct) for correct in by_question.values()]) if by_question else []
    known = [min(max(end, 0.0), 1.0) for end in ends if not math.isnan(end)]
    return {"accuracy": mean, "low": min(known, default=math.nan), "high": max(known, default=math.nan)}


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _spent(runs: Sequence[Sequence[Row]]) -> dict[str, float]:
    """Episodes and seconds of reinforcement learning, averaged over the seeds."""
    last = [rows[-1] for rows in runs]
    return {name: _mean(last, name) if last else 0.0 for name in ("episodes", "seconds")}


def _completions(model: ModelName, results: Sequence[Row]) -> list[Row]:
    """Completions to show, one per question: of the first evaluation, or else of the last iteration of training."""
    if results:
        rows, source = results[0]["completions"], f"evaluation on {results[0]['data']}"
    else:
        rows = last_completions(model.folder) if model.folder else []
        source = f"iteration {rows[0]['iteration']} of training" if rows else ""
    firsts: dict[str, Row] = {}
    for row in rows:
        firsts.setdefault(row["question"], row)
    return [{**row, "source": source} for row in firsts.values()]


def _explore(
    method: str, model: ModelName, completions: Sequence[Row], results: Sequence[Row], device: str, notes: list[str]
) -> Row | None:
    """Explorer and maps of one policy over options; None, with a note, if there is nothing to choose or to load."""
    settings = results[0] if results else model.description
    torch_device = resolve_device(device)
    problems = [
        Problem(id=str(row.get("id", index)), question=row["question"], solution="", answer=row["answer"], language="")
        for index, row in enumerate(completions[:MAPPED])
    ]
    limit = settings["max_new_tokens"]
    try:
        policy, tokenizer = load_policy(model, dtype=getattr(torch, settings["dtype"]), device=torch_device)
        assert isinstance(policy, ExploredPolicy)
        if policy.model.option_config.num_options == 1:
            raise UsageError("it has only one option")
        return {
            "method": method,
            "explored": explore(policy, tokenizer, problems[:EXPLORED], max_new_tokens=limit),
            **option_maps(policy, tokenizer, problems, max_new_tokens=limit),
        }
    except UsageError as error:  # the rest of the report is worth having
        notes.append(f"{method} has no explorer here: {one_line(error)}.")
        return None


def _short_name(model: str, taken: Container[str]) -> str:
    """The name of a model's folder, if no other method has it; of a model of the hub, the whole name."""
    name = Path(model).resolve().name if Path(model).is_dir() else model
    return model if name in taken else name


def _real_path(name: str) -> Path:
    return Path(name).resolve()
