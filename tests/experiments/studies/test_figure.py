"""The figure of several seeds: from the file of a comparison, or from folders of demos."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.agents.evaluation.groups import METRICS
from ollm_rl.errors import MissingError, UsageError
from ollm_rl.experiments.config import CompareConfig
from ollm_rl.experiments.curves import Curve
from ollm_rl.experiments.raw import pack
from ollm_rl.experiments.studies.colours import GREY, SIDES, colours
from ollm_rl.experiments.studies.figure import curves, draw
from ollm_rl.experiments.tuning import Tuned
from ollm_rl.runs import write_atomic

ROWS = [
    {**dict.fromkeys(METRICS, 0.0), "episodes": 32.0 * n, "seconds": 2.0 * n, "reward": n / 10} for n in range(1, 7)
]


def test_a_comparison_and_demos_give_the_runs_of_every_method(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train": {"model": "m"}, "max_episodes": 192, "seeds": [0, 1], "window": 64}
    methods: dict[str, Any] = {"latent": {}, "vocabulary": {"train": {"action_space": "tokens"}}}
    config = CompareConfig(out=tmp_path, baseline="vocabulary", methods=methods, **settings)
    runs = {method: {seed: Curve(ROWS, 64) for seed in (0, 1)} for method in methods}
    path = tmp_path / "comparison.parquet"
    write_atomic(path, pack(config, dict.fromkeys(methods, Tuned({}, 0.0, [])), runs, {}, {}))
    found = curves([path])
    assert {method: len(seeds) for method, seeds in found.items()} == {"latent": 2, "vocabulary": 2}
    assert found["latent"][1].reward[1:].tolist() == pytest.approx([0.15, 0.25, 0.35, 0.45, 0.55])  # of two iterations
    other = tmp_path / "other.parquet"
    shutil.copy(path, other)
    assert {method: len(seeds) for method, seeds in curves([path, other]).items()} == {"latent": 4, "vocabulary": 4}
    for method in ("latent", "anchored", "vocabulary"):
        (tmp_path / "demo" / method).mkdir(parents=True)
        (tmp_path / "demo" / method / "metrics.json").write_text(json.dumps(ROWS))
    of_demo = curves([tmp_path / "demo"] * 3)
    assert {method: len(seeds) for method, seeds in of_demo.items()} == dict.fromkeys(
        ("latent", "anchored", "vocabulary"), 3
    )
    assert of_demo["anchored"][0].reward[2:].tolist() == pytest.approx([0.2, 0.3, 0.4, 0.5])  # of three
    for source in (path, tmp_path / "demo"):
        draw(tmp_path / "figure.svg", [source])
        assert "vocabulary" in (tmp_path / "figure.svg").read_text()
    with pytest.raises(
        MissingError, match="holds no metrics; give folders of ollm-rl demo, or files comparison.parquet"
    ):
        curves([tmp_path])


def test_a_figure_of_too_many_methods_or_of_runs_that_differ_in_length_is_refused(tmp_path: Path) -> None:
    def packed(rows: list[dict[str, Any]], count: int) -> Path:
        methods: dict[str, Any] = {f"m{number}": {} for number in range(count)}
        config = CompareConfig(out=tmp_path, baseline="m0", methods=methods, max_episodes=192, seeds=[0, 1], window=64)
        runs = {method: {0: Curve(ROWS, 64), 1: Curve(rows, 64)} for method in methods}
        path = tmp_path / f"{count}.parquet"
        write_atomic(path, pack(config, dict.fromkeys(methods, Tuned({}, 0.0, [])), runs, {}, {}))
        return path

    with pytest.raises(UsageError, match=r"6 methods need more colours than a figure has; give fewer files"):
        draw(tmp_path / "figure.svg", [packed(ROWS, 6)])
    with pytest.raises(UsageError, match=r"runs of m0 differ in their number of iterations; give files whose runs"):
        draw(tmp_path / "figure.svg", [packed(ROWS[:4], 1)])


def test_the_same_method_has_the_same_colour_in_all_figures() -> None:
    few, many = colours(["vocabulary", "top tokens"]), colours(["a", "b", "vocabulary", "c", "d", "e", "f"])
    assert few["vocabulary"] == many["vocabulary"] == SIDES["vocabulary"]
    assert len(set(many.values())) == 7 and many["f"] == GREY
