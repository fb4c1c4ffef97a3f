"""Tuning by random search: every method tries equally many random settings, and its best is not at a range's edge."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.evaluation.groups import history
from ollm_rl.errors import UsageError
from ollm_rl.experiments.config import CompareConfig
from ollm_rl.experiments.curves import Curve, window_length
from ollm_rl.experiments.ray_tune import run_trials
from ollm_rl.experiments.trials import domain, draw, kind_and_values, parse_settings, setting_text
from ollm_rl.settings.base import checked, from_text
from ollm_rl.settings.ranges import Count
from ollm_rl.streams import Purpose, numpy_generator

EDGE = 0.1  # share of a range, on its scale, that counts as its edge

Ranges = dict[str, dict[str, list[Any]]]


class Tuned(NamedTuple):
    """What tuning found for a method: the best random settings, their score, and notes on ranges."""

    settings: dict[str, Any]
    score: float
    notes: list[str]


def tune_methods(config: CompareConfig) -> dict[str, Tuned]:
    """Try random settings of every method, widen ranges while the best setting is at an edge, and return the best.

    A method without random settings is not tuned; its score is NaN.
    """
    every = {name: _ranges({**config.random, **method.get("random", {})}) for name, method in config.methods.items()}
    drawn_from = covered = {name: ranges for name, ranges in every.items() if ranges}
    tried: dict[str, list[tuple[dict[str, Any], float]]] = {name: [] for name in covered}
    notes: dict[str, list[str]] = {name: [] for name in covered}
    best: dict[str, tuple[dict[str, Any], float]] = {}
    for tuning_round in range(config.max_widenings + 1 if covered else 0):
        count = config.num_trials if tuning_round == 0 else math.ceil(config.num_trials / 2)
        for name, results in _round(config, drawn_from, tuning_round, count).items():
            tried[name] += results
        best = {name: max(results, key=lambda result: result[1]) for name, results in tried.items()}
        beyond = {name: _accepted(config, name, best[name][0], ranges) for name, ranges in covered.items()}
        if not any(beyond.values()):
            break
        for name, parts in beyond.items():
            verb = "widened by" if tuning_round < config.max_widenings else "best at the edge; not tried:"
            notes[name] += [f"{setting} {verb} {text_of(part)}" for setting, part in parts.items()]
        drawn_from = {name: {**ranges, **beyond[name]} for name, ranges in covered.items()}
        covered = {
            name: {setting: _joined(part, beyond[name].get(setting, part)) for setting, part in ranges.items()}
            for name, ranges in covered.items()
        }
    return {name: Tuned(*best[name], notes[name]) if name in best else Tuned({}, math.nan, []) for name in every}


def _ranges(random: Ranges) -> Ranges:
    """Random settings with ends that are numbers."""
    return {name: dict([kind_and_values(name, specification)]) for name, specification in random.items()}


def _accepted(config: CompareConfig, method: str, settings: dict[str, Any], ranges: Ranges) -> Ranges:
    """The ranges to try next whose values a run accepts."""
    accepted = {}
    for name, part in ranges_beyond(settings, ranges).items():
        (values,) = part.values()
        try:
            for value in values:
                method_config(config, method, {**settings, name: value}, config.seeds[0], config.out)
            accepted[name] = part
        except UsageError:
            continue  # such as fewer episodes than a group has: the range ends there
    return accepted


def method_config(config: CompareConfig, method: str, settings: Mapping[str, Any], seed: int, out: Path) -> RLConfig:
    """Settings of one run, with as many iterations as fit the episodes of a run."""
    merged = {
        "device": "auto" if config.gpus else "cpu",
        **config.train,
        **config.methods[method].get("train", {}),
        **settings,
    }
    episodes = checked("episodes", from_text(merged.get("episodes", RLConfig.episodes), int), Count)
    iterations = config.max_episodes // episodes
    if not iterations:
        raise UsageError(f"max_episodes={config.max_episodes} is less than an iteration of {episodes}; raise it")
    if window_length(config.window, episodes) > iterations:
        raise UsageError(
            f"window={config.window} is more than the {iterations * episodes} episodes of a run ({iterations} "
            f"iterations of {episodes}); lower it, or raise max_episodes"
        )
    return parse_settings({**merged, "iterations": iterations, "seed": seed, "out": str(out.absolute())})


def ranges_beyond(settings: Mapping[str, Any], ranges: Ranges) -> Ranges:
    """Ranges to try next, by setting, where a value is at an edge beyond which there are further values."""
    beyond = {}
    for name, value in settings.items():
        ((kind, values),) = ranges[name].items()
        part = _beyond(kind, values, value)
        if part is not None:
            beyond[name] = {kind: part}
    return beyond


def _beyond(kind: str, values: list[Any], value: Any) -> list[Any] | None:
    """The values beyond the edge at which one is; None if it is not at an edge or nothing can be beyond."""
    if kind == "choice":
        return _next_choice(values, value)
    low, high = (math.log(end) if kind == "loguniform" else end for end in values)
    position = ((math.log(value) if kind == "loguniform" else value) - low) / (high - low)
    half = (high - low) / 2
    if position < EDGE:
        ends = (low - half, low + 2 * EDGE * half)
    elif position > 1 - EDGE:
        ends = (high - 2 * EDGE * half, high + half)
    else:
        return None
    return [math.exp(end) if kind == "loguniform" else end for end in ends]


def _next_choice(values: list[Any], value: Any) -> list[Any] | None:
    """A further number in the ratio of the last two, with the best one; numbers end at 1 if whole, and at 0."""
    numbers = sorted({number for number in values if isinstance(number, int | float)})
    if len(numbers) < 2 or len(numbers) < len(set(values)) or isinstance(value, bool):
        return None
    if value == numbers[0] and numbers[0] > 0:
        further = numbers[0] * numbers[0] / numbers[1]
    elif value == numbers[-1] and numbers[-2] > 0:
        further = numbers[-1] * numbers[-1] / numbers[-2]
    else:
        return None
    if all(isinstance(number, int) for number in numbers):
        if not float(further).is_integer():
            return None
        further = int(further)
    return [value, further]


def _joined(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The range that covers two of the same kind."""
    ((kind, values),) = one.items()
    if kind == "choice":  # of any values, mappings too
        return {kind: [*values, *(value for value in other[kind] if value not in values)]}
    both = values + other[kind]
    return {kind: [min(both), max(both)]}


def text_of(part: dict[str, list[Any]]) -> str:
    """A range as text."""
    ((kind, values),) = part.items()
    return f"{kind} " + " to ".join(f"{value:.3g}" for value in sorted(values))


def _round(
    config: CompareConfig, ranges: Mapping[str, Ranges], number: int, count: int
) -> dict[str, list[tuple[dict[str, Any], float]]]:
    """Run a round of trials of all methods; returns settings and scores, averaged over the tuning seeds."""
    folder = config.out / f"tuning-{number}"
    drawn: dict[str, list[dict[str, Any]]] = {}
    configs: dict[str, RLConfig] = {}
    for index, (method, random) in enumerate(ranges.items()):
        domains = {name: domain(name, specification) for name, specification in random.items()}
        generator = numpy_generator(config.sample_seed, Purpose.SWEEP, number, index)
        drawn[method] = [draw(domains, generator) for _ in range(count)]
        for trial, settings in enumerate(drawn[method]):
            for seed in config.tuning_seeds:
                name = f"{method}-{trial:02d}-seed{seed}"
                configs[name] = method_config(config, method, settings, seed, folder / "trials" / name)
    # What takes longest starts first, so that no GPU waits long for the last.
    order = sorted(configs, key=lambda name: (configs[name].action_space != "tokens", -configs[name].replay))
    errors = run_trials(folder / "tune", {name: configs[name] for name in order}, config)
    results: dict[str, list[tuple[dict[str, Any], float]]] = {}
    for method, trials in drawn.items():
        results[method] = []
        for trial, settings in enumerate(trials):
            names = [f"{method}-{trial:02d}-seed{seed}" for seed in config.tuning_seeds]
            failed = [name for name in names if name in errors]
            if failed:
                print(f"failed: {failed[0]} ({setting_text(settings)}): {errors[failed[0]]}")
                continue
            results[method].append(
                (
                    settings,
                    float(np.mean([Curve(history(configs[name].out), config.window).mean_reward for name in names])),
                )
            )
        if not results[method] and number == 0:  # beyond a range all may fail; then what was tried before counts
            raise UsageError(f"all trials of method {method!r} failed; {next(iter(errors.values()))}")
    return results
