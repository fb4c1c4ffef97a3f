"""Curves and tables of a comparison against numbers counted by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ollm_rl.agents.evaluation.groups import history
from ollm_rl.errors import UsageError
from ollm_rl.experiments.comparison import comparison_tables
from ollm_rl.experiments.config import CompareConfig
from ollm_rl.experiments.curves import Curve
from ollm_rl.experiments.raw import pack, tables_of
from ollm_rl.experiments.tuning import Tuned
from ollm_rl.report.tables import Estimate, Table


def run(folder: Path, rewards: list[float], **columns: list[float]) -> Curve:
    """A run of 10 episodes per iteration, 5 tokens per episode and 2 seconds per iteration."""
    folder.mkdir(parents=True)
    rows: list[dict[str, float]] = [
        {
            "iteration": float(index),
            "reward": reward,
            "reward_correctness": reward,
            "episodes": 10.0 * (index + 1),
            "seconds": 2.0 * (index + 1),
            "completion_tokens": 5.0,
            "language_switching_rate": 0.1 * index,
            "degeneracy_rate": 0.0,
            **{name: values[index] for name, values in columns.items()},
        }
        for index, reward in enumerate(rewards)
    ]
    (folder / "metrics.json").write_text(json.dumps(rows))
    return Curve(history(folder), window=20)


def test_a_threshold_is_reached_by_the_mean_over_the_window(tmp_path: Path) -> None:
    curve = run(tmp_path / "a", [0.0, 0.9, 0.5, 0.7, 1.0])
    assert math.isnan(curve.reward[0]) and curve.reward[1:].tolist() == pytest.approx([0.45, 0.7, 0.6, 0.85])
    assert [curve.time_to(0.7, axis) for axis in ("episodes", "tokens", "seconds")] == [30, 150, 6]
    assert curve.rate_at(0.7, "language_switching_rate") == pytest.approx((0.1 + 0.2) / 2)
    assert curve.time_to(0.9, "episodes") == math.inf and curve.time_to(0.9, "episodes", censored=False) == 50
    assert math.isnan(curve.rate_at(0.9, "degeneracy_rate"))
    assert curve.mean_reward == pytest.approx(3.1 / 5)


def test_a_mean_that_is_the_threshold_reaches_it_whatever_its_rounding(tmp_path: Path) -> None:
    rows = run(tmp_path / "a", [0.7, 1.0, 1.0, 1.0]).rows  # numpy's mean of the first three is 0.8999999999999999
    assert Curve(rows, window=30).time_to(0.9, "episodes") == 30


def test_a_run_shorter_than_the_window_reaches_nothing(tmp_path: Path) -> None:
    curve = run(tmp_path / "a", [1.0])
    assert math.isnan(curve.reward[0]) and curve.time_to(0.9, "episodes") == math.inf


def test_a_window_longer_than_the_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"window=96 is more than max_episodes=32"):
        CompareConfig(out=tmp_path, baseline="latent", methods={"latent": {}}, max_episodes=32)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Table]:
    tmp_path = tmp_path_factory.mktemp("runs")
    first: list[list[float]] = [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    second: list[list[float]] = [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    ours = [run(tmp_path / f"ours{number}", rewards) for number, rewards in enumerate(first)]
    theirs = [run(tmp_path / f"theirs{number}", rewards) for number, rewards in enumerate(second)]
    config = CompareConfig(
        out=tmp_path, baseline="vocabulary", methods={"latent": {}, "vocabulary": {}}, thresholds=[0.9], window=20
    )
    result = {"accuracy": 0.5, "language_switching_rate": 0.25, "degeneracy_rate": 0.0}
    results = {name: {kind: [result] * 3 for kind in ("greedy", "sampled")} for name in ("latent", "vocabulary")}
    tuned = {"latent": Tuned({"learning_rate": 1e-3}, 0.75, ["a note"]), "vocabulary": Tuned({}, math.nan, [])}
    found = comparison_tables(config, tuned, {"latent": ours, "vocabulary": theirs}, results)
    return {table.title: table for table in found}


def row(table: Table, method: str) -> dict[str, Any]:
    (cells,) = (cells for cells in table.rows if cells[0] == method)
    return dict(zip(table.columns, cells, strict=True))


def test_a_threshold_has_medians_ratios_and_censored_runs(tables: dict[str, Table]) -> None:
    latent, vocabulary = (row(tables["Until reward 0.9"], name) for name in ("latent", "vocabulary"))
    # Ours at 20, 30 and 40 episodes; theirs at 40, never and never.
    assert latent["reached"] == "3 of 3" and vocabulary["reached"] == "1 of 3"
    assert latent["episodes"] == Estimate(30, 20, 40, 0)
    assert vocabulary["episodes"] == Estimate(math.inf, 40, math.inf, 0) and str(vocabulary["episodes"])[:5] == "never"
    assert latent["generated tokens"].value == 150 and latent["seconds"].value == 6
    assert latent["episodes, ratio"].value == 30 / 40, "a run that never gets there counts with its end"
    # Of nine pairs only (40, 40) is a tie.
    assert latent["P(fewer episodes)"].value == pytest.approx(8.5 / 9)
    assert vocabulary["P(fewer episodes)"] == "–"
    # Rates over the two iterations of each window, in per cent: (0 + 10) / 2, (10 + 20) / 2, (20 + 30) / 2.
    assert latent["language switching, %"].value == pytest.approx(15)


def test_the_last_threshold_is_the_best_reward_of_the_baseline(tables: dict[str, Table]) -> None:
    # Its runs have windows of at most 1, 0 and 0.5: half of them reach 0.5.
    latent, vocabulary = (
        row(tables["Until reward 0.500, the baseline's best"], name) for name in ("latent", "vocabulary")
    )
    assert latent["episodes"] == Estimate(20, 20, 30, 0) and vocabulary["reached"] == "2 of 3"
    assert latent["episodes, ratio"].value == 20 / 40, "theirs at 30, never and 40"


def test_learning_is_the_mean_of_all_rewards(tables: dict[str, Table]) -> None:
    latent = row(tables["Learning"], "latent")
    assert latent["all episodes"].value == pytest.approx(0.75), "of 1, 0.75 and 0.5 no quarter can be dropped"
    assert latent["last 20"].value == 1
    assert latent["P(better)"].value == pytest.approx(8.5 / 9)  # 1, 3/4, 1/2 against 1/2, 0, 1/4


def test_settings_and_accuracies_are_listed(tables: dict[str, Table]) -> None:
    settings = tables["Chosen settings"]
    assert settings.rows == [["latent", "learning_rate=0.001", "0.750", "a note"], ["vocabulary", "–", "–", "–"]]
    assert "Greedy accuracy while training, %" not in tables
    assert row(tables["After training"], "latent")["greedy accuracy, %"].value == 50
    assert (
        "| latent | 50.0 [50.0, 50.0] | 50.0 [50.0, 50.0] | 25.0 [25.0, 25.0] | 0.0 [0.0, 0.0] |"
        in tables["After training"].markdown()
    )


def test_evaluations_while_training_have_a_table(tmp_path: Path) -> None:
    one = run(tmp_path / "one", [0.0, 0, 0], eval_accuracy=[0.1, 0.2, 0.3])
    other = run(tmp_path / "other", [0.0, 0, 0], eval_accuracy=[0.3, 0.4, 0.5])
    config = CompareConfig(out=tmp_path, baseline="a", methods={"a": {}}, thresholds=[])
    evaluation = {"accuracy": 0.5, "language_switching_rate": 0.0, "degeneracy_rate": 0.0}
    results = {"a": {"greedy": [evaluation], "sampled": [evaluation]}}
    found = {t.title: t for t in comparison_tables(config, {"a": Tuned({}, 0.5, [])}, {"a": [one, other]}, results)}
    cells = row(found["Greedy accuracy while training, %"], "a")
    assert [cells[episodes].value for episodes in ("10", "20", "30")] == pytest.approx([20, 30, 40])


def test_what_was_neither_tuned_nor_evaluated_has_no_table(tmp_path: Path) -> None:
    config = CompareConfig(
        out=tmp_path, baseline="a", methods={"a": {}}, thresholds=[], window=1_536, max_episodes=2_048
    )
    curves = {"a": [run(tmp_path / "one", [0.5, 0.5])]}
    table, best = comparison_tables(config, {"a": Tuned({}, math.nan, [])}, curves, {"a": {}})
    assert table.title == "Learning" and table.columns[3] == "last 1,536"
    assert best.title == "Until reward 0.500, the baseline's best"


def test_a_file_without_a_comparison_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    pd.DataFrame({"reward": [1.0]}).to_parquet(other)
    (tmp_path / "text.parquet").write_text("no table")
    newer = tmp_path / "newer.parquet"
    metadata = {b"comparison": json.dumps({"config": {"baseline": "a", "methods": {"a": {}}, "hue": 1}}).encode()}
    pq.write_table(pa.table({"reward": [1.0]}).replace_schema_metadata(metadata), newer)
    for path in (other, newer, tmp_path / "text.parquet", tmp_path / "missing.parquet"):
        with pytest.raises(UsageError, match=rf"{path.name} holds no comparison .*give the comparison.parquet"):
            tables_of(path)
    with pytest.raises(UsageError, match=r"other.parquet holds no comparison \(it is another table\); give"):
        tables_of(other)


def test_some_seeds_of_a_file_are_shown_by_themselves_and_one_that_it_lacks_is_refused(tmp_path: Path) -> None:
    config = CompareConfig(out=tmp_path, baseline="a", methods={"a": {}}, thresholds=[0.5], window=10)
    curves = {"a": {seed: run(tmp_path / f"{seed}", [reward] * 2) for seed, reward in ((0, 0.25), (7, 0.75))}}
    result = {"accuracy": 0.5, "language_switching_rate": 0.0, "degeneracy_rate": 0.0}
    evaluations = {"greedy": [result] * 2, "sampled": [result] * 2}
    path = tmp_path / "comparison.parquet"
    path.write_bytes(pack(config, {"a": Tuned({}, math.nan, [])}, curves, {"a": evaluations}, {}))
    titles = ["Learning", "Until reward 0.5", "Until reward 0.250, the baseline's best", "After training"]
    assert [table.title for table in tables_of(path)] == titles
    learning, reached, _ = tables_of(path, seeds=[7])
    assert [str(cell) for cell in learning.rows[0]][:3] == ["a", "1", "0.750 [0.750, 0.750]"]
    assert reached.rows[0][1] == "1 of 1"
    with pytest.raises(UsageError, match=r"seeds=\[3\]: .*comparison.parquet has no such runs; leave them out"):
        tables_of(path, seeds=[3, 7])


def test_several_files_are_shown_as_one_comparison_and_must_fit_together(tmp_path: Path) -> None:
    result = {"accuracy": 0.5, "language_switching_rate": 0.0, "degeneracy_rate": 0.0}

    def packed(name: str, rewards: dict[int, float], **settings: Any) -> Path:
        config = CompareConfig(out=tmp_path, methods={"a": {}, "b": {}}, thresholds=[0.5], **settings)
        curves = {seed: run(tmp_path / name / f"{seed}", [reward] * 2) for seed, reward in rewards.items()}
        results = {"a": {"greedy": [result] * len(rewards), "sampled": [result] * len(rewards)}, "b": {}}
        path = tmp_path / f"{name}.parquet"
        tuned = {"a": Tuned({}, math.nan, []), "b": Tuned({}, math.nan, [])}
        path.write_bytes(pack(config, tuned, {"a": curves, "b": {}}, results, {}))
        return path

    fits: dict[str, Any] = {"baseline": "a", "window": 10}
    whole = packed("whole", {0: 0.25, 1: 0.5, 2: 0.75}, **fits)
    parts = packed("first", {0: 0.25}, **fits), packed("second", {1: 0.5, 2: 0.75}, **fits)
    assert tables_of(*parts) == tables_of(whole)
    wider = packed("wider", {3: 1.0}, baseline="a", window=20)
    longer = packed("longer", {3: 1.0}, **fits, max_episodes=2_048)
    with pytest.raises(UsageError, match=r"wider.parquet has window=20, .*first.parquet has 10; give files that have"):
        tables_of(parts[0], wider)
    with pytest.raises(UsageError, match=r"longer.parquet has max_episodes=2048, .*has 1024; give files that have"):
        tables_of(parts[0], longer)
    with pytest.raises(
        UsageError, match=r"a file is given twice among .*first.parquet, .*first.parquet; leave one out"
    ):
        tables_of(parts[0], parts[0])


def test_the_best_reward_of_an_even_number_of_runs_is_one_that_half_of_them_reach(tmp_path: Path) -> None:
    runs = [run(tmp_path / f"{number}", [reward] * 2) for number, reward in enumerate((0.25, 0.5, 0.75, 1.0))]
    config = CompareConfig(out=tmp_path, baseline="a", methods={"a": {}}, thresholds=[], window=20)
    _, best = comparison_tables(config, {"a": Tuned({}, math.nan, [])}, {"a": runs}, {})
    assert best.title == "Until reward 0.500, the baseline's best" and best.rows[0][1] == "3 of 4"


def test_a_baseline_that_earns_nothing_has_no_best_reward(tmp_path: Path) -> None:
    config = CompareConfig(out=tmp_path, baseline="a", methods={"a": {}}, thresholds=[], window=20)
    (table,) = comparison_tables(config, {"a": Tuned({}, math.nan, [])}, {"a": [run(tmp_path / "one", [0.0, 0.0])]}, {})
    assert table.title == "Learning"
