"""Compare methods: each is tuned by the same number of random trials, then run on fresh seeds.

Below ``out``: ``tuning-0`` and so on (the trials), ``runs`` (fresh seeds, each with its evaluations), ``chosen.json``,
``comparison.json`` and ``comparison.md`` (the tables), ``comparison.parquet`` (what they are made from) and
``report.html``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.evaluation.config import EvalConfig
from ollm_rl.agents.evaluation.free_running import run_eval
from ollm_rl.agents.evaluation.groups import history
from ollm_rl.agents.evaluation.reporting import report_methods
from ollm_rl.agents.evaluation.results import read_results
from ollm_rl.agents.training.problems import refuse_training_problems
from ollm_rl.errors import UsageError
from ollm_rl.experiments.comparison import comparison_tables
from ollm_rl.experiments.config import CompareConfig
from ollm_rl.experiments.curves import Curve
from ollm_rl.experiments.inputs import check_inputs
from ollm_rl.experiments.raw import pack
from ollm_rl.experiments.ray_tune import check_resources, ray_stopped_after, run_trials
from ollm_rl.experiments.trials import domain
from ollm_rl.experiments.tuning import Tuned, method_config, tune_methods
from ollm_rl.files.records import read_object
from ollm_rl.problems.sources import load_problems
from ollm_rl.runs import exclusive_run, origin, write_atomic
from ollm_rl.settings import expect

EVALUATIONS = {"greedy": False, "sampled": True}  # name of the folder: whether completions are sampled


def run_compare(config: CompareConfig) -> Path:
    """Tune all methods, run the chosen settings on fresh seeds, print the tables, and return the report's path.

    Raises:
        UsageError: If a setting, model or data set does not fit, the machine lacks cores or GPUs, the folder holds
            another or a running comparison, or all trials of a method, or all runs, failed.
    """
    expect(config, CompareConfig)
    check_resources(config)
    trials = _first_trials(config)
    _check_evaluation(config, trials)
    check_inputs(config.out, trials)
    with exclusive_run(config.out, "compare", config):
        with ray_stopped_after():
            tuned = _chosen(config)
            runs = _run_chosen(config, tuned)
        return _write_results(config, tuned, runs)


def _check_evaluation(config: CompareConfig, trials: Sequence[RLConfig]) -> None:
    """Refuse a final evaluation on no problems, or, if the comparison has not begun, on those of training."""
    split = config.eval_split or "test"
    if config.eval_data is not None:
        load_problems(config.eval_data, split=split, columns=config.eval_columns, limit=config.eval_limit)
    elif not (config.out / "run.json").exists():
        for trial in trials:
            refuse_training_problems(trial, split, "the final evaluation")


def _first_trials(config: CompareConfig) -> list[RLConfig]:
    """Settings of a run of every method, with the first value of each range; refuses what a run would refuse."""
    configs = []
    for method, parts in config.methods.items():
        random = {**config.random, **parts.get("random", {})}
        domains = {name: domain(name, specification) for name, specification in random.items()}
        firsts = {name: next(iter(random[name].values()))[0] for name in domains}
        configs.append(method_config(config, method, firsts, config.seeds[0], config.out / method))
    return configs


def _chosen(config: CompareConfig) -> dict[str, Tuned]:
    """The settings that tuning chose, from ``chosen.json`` if it has ended."""
    path = config.out / "chosen.json"
    if path.exists():
        try:
            return {name: Tuned(**tuned) for name, tuned in read_object(path).items()}
        except TypeError as error:
            raise UsageError(f"{path} holds no chosen settings ({error}); delete it to choose again") from error
    tuned = tune_methods(config)
    write_atomic(path, json.dumps({name: found._asdict() for name, found in tuned.items()}, indent=1))
    return tuned


def _run_chosen(config: CompareConfig, tuned: Mapping[str, Tuned]) -> dict[str, list[RLConfig]]:
    """Run and evaluate every method on the fresh seeds; returns the settings of the runs that did not fail."""
    folder = config.out / "runs"
    configs = {
        f"{method}-seed{seed}": method_config(config, method, found.settings, seed, folder / f"{method}-seed{seed}")
        for seed in config.seeds  # so that what is done early can be compared
        for method, found in tuned.items()
    }
    errors = run_trials(config.out / "tune", configs, config, finish=evaluation(config))
    if len(errors) == len(configs):
        name, message = next(iter(errors.items()))
        raise UsageError(f"all {len(configs)} runs failed; {name}: {message}")
    for name, message in errors.items():
        print(f"failed: {name}: {message}")
    return {
        method: [configs[name] for seed in config.seeds if (name := f"{method}-seed{seed}") not in errors]
        for method in tuned
    }


def evaluation(config: CompareConfig) -> Callable[[RLConfig], None]:
    """What is done with a finished run: greedy and sampled evaluation on the test problems, the same for all runs."""

    def evaluate(run: RLConfig) -> None:
        for name, sample in EVALUATIONS.items():
            run_eval(
                EvalConfig(
                    model=[str(run.out)],
                    data=[config.eval_data or run.data],
                    split=config.eval_split or "test",
                    columns=run.columns if config.eval_data is None else config.eval_columns,
                    limit=config.eval_limit,
                    out=run.out / name,
                    sample=sample,
                    max_new_tokens=run.max_new_tokens,
                    num_slots=run.num_slots,
                    dtype=run.dtype,
                    device=run.device,
                )
            )

    return evaluate


def _write_results(config: CompareConfig, tuned: Mapping[str, Tuned], runs: Mapping[str, Sequence[RLConfig]]) -> Path:
    """Write tables and report, print the tables, and return the report's path."""
    curves = {
        method: {run.seed: Curve(history(run.out), config.window) for run in of_method}
        for method, of_method in runs.items()
    }
    results = {
        method: {name: [read_results(run.out / name)[0] for run in of_method] for name in EVALUATIONS}
        for method, of_method in runs.items()
    }
    made = origin()
    write_atomic(config.out / "comparison.parquet", pack(config, tuned, curves, results, made))
    tables = comparison_tables(config, tuned, {method: [*of.values()] for method, of in curves.items()}, results)
    data = {"tables": [table._asdict() for table in tables], "seeds": config.seeds, **made}
    write_atomic(config.out / "comparison.json", json.dumps(data, indent=1))
    text = "\n\n".join(table.markdown() for table in tables)
    write_atomic(config.out / "comparison.md", text + "\n")
    print(text)
    report = config.out / "report.html"
    folders = {method: [str(run.out) for run in of_method] for method, of_method in runs.items() if of_method}
    greedy = [result for of_method in results.values() for result in of_method["greedy"]]
    report_methods(report, folders, greedy, tables=tables)
    return report
