"""The tables of a comparison, from the curves and evaluations of its runs.

Every number is over the runs (fresh seeds) of a method, with a 95 % interval by the bootstrap over runs. A run that
ends before it reaches a threshold is censored: its time counts as infinite, and in ratios as the run's end.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ollm_rl.experiments.config import CompareConfig
from ollm_rl.experiments.curves import Curve
from ollm_rl.experiments.trials import setting_text
from ollm_rl.experiments.tuning import Tuned
from ollm_rl.metrics.reliability import interquartile_mean, probability_of_improvement, stratified_interval
from ollm_rl.report.tables import Cell, Estimate, Table

Curves = Mapping[str, Sequence[Curve]]  # by method, one for each run
Results = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # by method and evaluation, one for each run

AXES = {"episodes": "episodes", "tokens": "generated tokens", "seconds": "seconds"}
RATES = {"language_switching_rate": "language switching, %", "degeneracy_rate": "degenerate, %"}
NOTHING = "–"


def comparison_tables(
    config: CompareConfig, tuned: Mapping[str, Tuned], curves: Curves, results: Results
) -> list[Table]:
    """The tables of what is there: chosen settings, learning, each threshold, accuracy while and after training.

    The last threshold is the baseline's best reward: the highest mean reward of a window that more than half of its
    runs reach, so that their median time is a number.
    """
    thresholds = [_threshold_table(config, curves, threshold, f"{threshold:g}") for threshold in config.thresholds]
    tables = [_learning_table(config, curves), *thresholds]
    highest = sorted(
        max(finite) for curve in curves[config.baseline] if len(finite := curve.reward[~np.isnan(curve.reward)])
    )
    best = highest[(len(highest) - 1) // 2] if highest else 0.0
    if best > 0:  # else every method is there at once
        tables.append(_threshold_table(config, curves, best, f"{best:.3f}, the baseline's best"))
    if any(found.settings for found in tuned.values()):
        tables.insert(0, _settings_table(tuned))
    if any(curve.evaluations() for runs in curves.values() for curve in runs):
        tables.append(_evaluations_table(curves))
    if any(results.values()):
        tables.append(_accuracy_table(results))
    return tables


def _settings_table(tuned: Mapping[str, Tuned]) -> Table:
    rows = [
        [
            method,
            setting_text(found.settings) or NOTHING,
            NOTHING if math.isnan(found.score) else f"{found.score:.3f}",
            "; ".join(found.notes) or NOTHING,
        ]
        for method, found in tuned.items()
    ]
    note = "The best of the random trials by the mean reward of all episodes, averaged over the tuning seeds."
    return Table("Chosen settings", note, ["method", "settings", "score", "ranges"], rows)


def _learning_table(config: CompareConfig, curves: Curves) -> Table:
    base = [curve.mean_reward for curve in curves[config.baseline]]
    rows: list[list[Cell]] = []
    for method, runs in curves.items():
        areas, last = [curve.mean_reward for curve in runs], [float(curve.reward[-1]) for curve in runs]
        better = NOTHING if method == config.baseline else _estimate(probability_of_improvement, areas, base)
        estimates = [_estimate(interquartile_mean, scores) for scores in (areas, last)]
        rows.append([method, str(len(runs)), *estimates, better])
    note = (
        f"Interquartile means over the runs of the mean reward of all episodes and of the last {config.window:,}; and "
        f"the probability that a run has a higher mean reward of all episodes than one of {config.baseline}."
    )
    return Table("Learning", note, ["method", "runs", "all episodes", f"last {config.window:,}", "P(better)"], rows)


def _threshold_table(config: CompareConfig, curves: Curves, threshold: float, title: str) -> Table:
    base = curves[config.baseline]
    rows: list[list[Cell]] = []
    for method, runs in curves.items():
        times = {axis: np.array([curve.time_to(threshold, axis) for curve in runs]) for axis in AXES}
        row: list[Cell] = [method, f"{np.isfinite(times['episodes']).sum()} of {len(runs)}"]
        row += [_estimate(_median, times[axis], digits=0) for axis in AXES]
        if method == config.baseline:
            row += [NOTHING] * 3
        else:
            for axis in ("episodes", "seconds"):
                ends = [[curve.time_to(threshold, axis, censored=False) for curve in side] for side in (runs, base)]
                row.append(_estimate(_median_ratio, *ends, digits=2))
            theirs = [-curve.time_to(threshold, "episodes") for curve in base]
            row.append(_estimate(probability_of_improvement, -times["episodes"], theirs))
        for name in RATES:
            rates = [100 * rate for curve in runs if not math.isnan(rate := curve.rate_at(threshold, name))]
            row.append(_estimate(_mean, rates, digits=1))
        rows.append(row)
    note = (
        f"Medians over the runs until the mean reward of the last {config.window:,} episodes is {title}; ratios "
        f"of medians to {config.baseline}, where a run that does not reach it counts with its end; the probability "
        f"that a run needs fewer episodes than one of {config.baseline}; and mean rates over the {config.window:,} "
        "episodes with which a run reaches it."
    )
    columns = ["method", "reached", *AXES.values(), "episodes, ratio", "seconds, ratio", "P(fewer episodes)"]
    return Table(f"Until reward {title}", note, [*columns, *RATES.values()], rows)


def _evaluations_table(curves: Curves) -> Table:
    """Greedy accuracy by the number of episodes."""
    by_run = {method: [curve.evaluations() for curve in runs] for method, runs in curves.items()}
    points = sorted({episodes for runs in by_run.values() for run in runs for episodes in run})
    rows: list[list[Cell]] = []
    for method, runs in by_run.items():
        found = [[100 * run[point] for run in runs if point in run] for point in points]
        rows.append([method, *(_estimate(_mean, values, digits=1) for values in found)])
    columns = ["method", *(f"{point:,}" for point in points)]
    return Table("Greedy accuracy while training, %", "Means over the runs after this many episodes.", columns, rows)


def _accuracy_table(results: Results) -> Table:
    rows: list[list[Cell]] = []
    for method, evaluations in results.items():
        values = [(name, "accuracy") for name in evaluations] + [("sampled", rate) for rate in RATES]
        percent = [[100 * result[key] for result in evaluations[name]] for name, key in values]
        rows.append([method, *(_estimate(_mean, column, digits=1) for column in percent)])
    note = "Means over the runs on the test problems; the rates are those of the sampled completions."
    columns = ["method", "greedy accuracy, %", "sampled accuracy, %", *RATES.values()]
    return Table("After training", note, columns, rows)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def _median(values: np.ndarray) -> float:
    """The median, or the upper one of two in the middle: between a number and infinity there is no other."""
    return float(np.sort(values)[len(values) // 2])


def _median_ratio(ours: np.ndarray, theirs: np.ndarray) -> float:
    return _median(ours) / _median(theirs)


def _estimate(statistic: Callable[..., float], *samples: Any, digits: int = 3) -> Cell:
    """A statistic of one or two methods with its interval; a dash if one has no numbers, as when its runs failed."""
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if not all(map(len, arrays)):
        return NOTHING
    return Estimate(statistic(*arrays), *stratified_interval(statistic, *arrays), digits)
