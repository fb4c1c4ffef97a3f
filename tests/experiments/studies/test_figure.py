"""The figure of several seeds: from the file of a comparison, or from folders of demos."""

import json
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.agents.evaluation.groups import METRICS
from ollm_rl.errors import MissingError
from ollm_rl.experiments.config import CompareConfig
from ollm_rl.experiments.curves import Curve
from ollm_rl.experiments.raw import pack
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
    assert {method: len(seeds) for method, seeds in curves([path, path]).items()} == {"latent": 4, "vocabulary": 4}
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
