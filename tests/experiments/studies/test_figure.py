"""The figure of several seeds: from the file of a comparison, or from folders of demos."""

import json
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.errors import MissingError
from ollm_rl.experiments.config import CompareConfig
from ollm_rl.experiments.curves import Curve
from ollm_rl.experiments.raw import pack
from ollm_rl.experiments.studies.figure import draw, histories, rewards
from ollm_rl.experiments.tuning import Tuned
from ollm_rl.runs import write_atomic

ROWS = [{"episodes": 32.0 * n, "seconds": 2.0 * n, "tokens": 9.0 * n, "reward": n / 10} for n in range(1, 7)]


def test_a_reward_is_the_mean_of_the_last_episodes_and_of_fewer_at_the_beginning() -> None:
    assert rewards(ROWS, 96) == pytest.approx([0.1, 0.15, 0.2, 0.3, 0.4, 0.5])
    assert rewards(ROWS, 1) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_a_comparison_and_demos_give_the_runs_of_every_method(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train": {"model": "m"}, "max_episodes": 192, "seeds": [0, 1], "window": 64}
    methods: dict[str, Any] = {"latent": {}, "vocabulary": {"train": {"action_space": "tokens"}}}
    config = CompareConfig(out=tmp_path, baseline="vocabulary", methods=methods, **settings)
    curves = {method: {seed: Curve(ROWS, 64) for seed in (0, 1)} for method in methods}
    path = tmp_path / "comparison.parquet"
    write_atomic(path, pack(config, dict.fromkeys(methods, Tuned({}, 0.0, [])), curves, {}, {}))
    window, runs = histories([path])
    assert window == 64 and {method: len(seeds) for method, seeds in runs.items()} == {"latent": 2, "vocabulary": 2}
    assert runs["latent"][1] == ROWS
    for method in ("latent", "anchored", "vocabulary"):
        (tmp_path / "demo" / method).mkdir(parents=True)
        (tmp_path / "demo" / method / "metrics.json").write_text(json.dumps(ROWS))
    assert histories([tmp_path / "demo"]) == (96, dict.fromkeys(("latent", "anchored", "vocabulary"), [ROWS]))
    for source in (path, tmp_path / "demo"):
        draw(tmp_path / "figure.svg", [source])
        assert "vocabulary" in (tmp_path / "figure.svg").read_text()
    with pytest.raises(MissingError, match="metrics.json does not exist; give folders of ollm-rl demo, or one"):
        histories([tmp_path])
