"""Limits: what is shown of a setting is what its results say."""

import json
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.errors import UsageError
from ollm_rl.experiments.studies import limits

RUN = [
    {"episodes": 8.0 * (number + 1), "reward": reward, "mixed_groups": mixed, "live_share": 0.5}
    for number, (reward, mixed) in enumerate([(0.0, 0.25), (0.0, 0.75), (0.5, 1.0), (0.5, 0.5), (1.0, 0.0), (1.0, 0.5)])
]
START: dict[str, dict[str, Any]] = {
    "backbone": {"greedy": [0.25, 0.2, 0.3], "pass": {1: 0.2, 2: 0.4}},
    "options": {"pass": {1: 0.25}},
}
CEILINGS: dict[str, dict[str, Any]] = {
    "anchored": {"whole_coverage": 0.069, "before": [0.07, 0.05, 0.09], "after": [0.17, 0.14, 0.2]}
}


def test_signals_are_means_of_thirds_over_seeds() -> None:
    silent = [{**row, "mixed_groups": 0.0} for row in RUN]
    table = limits.training_table({"latent": [RUN, silent], "short": [RUN[:2]]})
    assert table.rows[0] == ["latent", "2", "0.00, 0.50, 1.00", "0.25, 0.38, 0.12", "0.50, 0.50, 0.50"]
    assert table.rows[1][3] == "0.25, 0.75"


def test_starts_and_ceilings_are_in_per_cent_and_what_is_missing_is_left_open(tmp_path: Path) -> None:
    start = limits.start_table(START)
    assert start.columns[2:] == ["pass@1", "pass@2"]
    assert [list(map(str, row)) for row in start.rows] == [
        ["backbone", "25.0 [20.0, 30.0]", "20.0", "40.0"],
        ["options", "–", "25.0", "–"],
    ]
    (row,) = limits.imitation_table(CEILINGS).rows
    assert list(map(str, row)) == ["anchored", "6.9", "7.0 [5.0, 9.0]", "17.0 [14.0, 20.0]"]


def test_the_start_is_read_from_the_summaries_of_evaluations(tmp_path: Path) -> None:
    def summary(name: str, **numbers: float) -> None:
        (tmp_path / name).mkdir()
        row = {"model": "runs/options", "accuracy": 0.25, "low": 0.2, "high": 0.3, **numbers}
        (tmp_path / name / "results.json").write_text(json.dumps([row]))

    summary("greedy")
    summary("pass", accuracy=0.1, pass_at_2=0.5, pass_at_1=0.1)
    assert limits.start_results(tmp_path) == {"options": {"greedy": [0.25, 0.2, 0.3], "pass": {1: 0.1, 2: 0.5}}}
    (tmp_path / "greedy/results.json").write_text('[{"model": "runs/options"}]')
    with pytest.raises(UsageError, match="greedy/results.json .*accuracy"):
        limits.start_results(tmp_path)


def test_a_setting_that_was_saved_gives_the_same_tables_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = limits.Setting(START, CEILINGS, {"latent": [RUN]})
    (tmp_path / "words.json").write_text(setting.text())
    again = limits.Setting.of(tmp_path / "words.json")
    assert again.tables() == setting.tables() and len(again.tables()) == 3
    figures = [tmp_path / "limits.svg", tmp_path / "again/limits.svg"]
    empty = limits.Setting({}, {}, {"vocabulary": [RUN]})
    for found, path in zip((setting, again), figures, strict=True):
        limits.draw({"words": found, "styles": empty}, path)
    text = figures[0].read_text()
    assert "greedy after imitation" in text and "styles" in text
    greedy_only = setting._replace(start={"backbone": {"pass": {}, "greedy": [0.1, 0.0, 0.2]}})
    limits.draw({"words": greedy_only}, tmp_path / "greedy.svg")
    assert "not measured" in (tmp_path / "greedy.svg").read_text()
    assert figures[1].read_text() == text, "the same figure has the same ids"
    with pytest.raises(UsageError, match="nothing holds no results; give the OUT of a study's script"):
        limits.Setting.of(tmp_path / "nothing")
    (tmp_path / "other.json").write_text('{"start": 1}')
    with pytest.raises(UsageError, match="other.json .*; give a file of --save"):
        limits.Setting.of(tmp_path / "other.json")
    (tmp_path / "other.json").write_text(setting._replace(ceilings={"latent": {"loss": 1}}).text())
    with pytest.raises(UsageError, match="other.json has been changed .*whole_coverage.*; give a file of --save"):
        limits.Setting.of(tmp_path / "other.json")
    monkeypatch.setattr("sys.argv", ["limits", f"{tmp_path}/words.json", f"{tmp_path}/words"])
    (tmp_path / "words").write_text(setting.text())
    with pytest.raises(UsageError, match="two settings have the same name"):
        limits.main()
