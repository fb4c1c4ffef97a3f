"""Tables of optimal selection: per cent where shares are meant, and the whole budget with its interval."""

import json
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.errors import MissingError
from ollm_rl.experiments.studies.selection_table import ambiguity_table, forced_table, search_table, show


def test_what_a_column_does_not_have_is_left_open() -> None:
    scores: dict[str, Any] = {"token_accuracy": [0.5, 0.4, 0.6], "nll": [1, 0.5, 2], "answer_correct": [0.25, 0.2, 0.3]}
    (row,) = forced_table({"columns": {"lora": scores}, "num_problems": 3}).rows
    assert list(map(str, row)) == ["lora", "50.0 [40.0, 60.0]", "1.000 [0.500, 2.000]", "25.0 [20.0, 30.0]", "–", "–"]


def test_the_last_budget_has_the_interval_of_the_whole_search(tmp_path: Path) -> None:
    result = {
        "budgets": [6, 12],
        "curves": {"oracle": [0.125, 0.5]},
        "accuracy": {"oracle": {"mean": 0.5, "low": 0.25, "high": 0.75}},
        "num_problems": 8,
    }
    (tmp_path / "best-of-n-lora.json").write_text(json.dumps(result))
    (tmp_path / "forced.json").write_text("{}")  # no search
    table = search_table(tmp_path, "oracle")
    assert table.columns == ["search", "6", "12"]
    assert [list(map(str, row)) for row in table.rows] == [["best-of-n-lora", "12.5", "50.0 [25.0, 75.0]"]]


def test_how_sure_the_text_is_and_a_folder_without_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ambiguity = {"deterministic": [0.5, 0.25, 0.75], "ambiguous": [0.25, 0.125, 0.5], "ambiguous_top_two": [0.5] * 3}
    options = {"live_share": [0.25] * 3, "whole_coverage": [0.75, 0.5, 1.0], "distinct_tokens": [1.5, 1.25, 2.0]}
    forced = {"columns": {}, "ambiguity": ambiguity, "options": options, "num_problems": 3}
    rows = [list(map(str, row)) for row in ambiguity_table(forced).rows]
    assert rows[0] == ["positions with an entropy below 0.1 nats", "50.0 [25.0, 75.0]"]
    assert rows[-1] == ["true solutions that options offer whole", "75.0 [50.0, 100.0]"] and len(rows) == 5
    (tmp_path / "forced.json").write_text(json.dumps(forced))
    show(tmp_path)
    printed = capsys.readouterr().out
    assert "### Ambiguity" in printed and "### Oracle" not in printed


def test_searches_without_scores_along_solutions_and_a_folder_without_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MissingError, match=f"{tmp_path} holds no forced.json and no searches; give the folder"):
        show(tmp_path)
    choices = ("oracle", "majority", "likelihood")
    result = {
        "budgets": [6],
        "curves": {choice: [0.5] for choice in choices},
        "accuracy": {choice: {"mean": 0.5, "low": 0.25, "high": 0.75} for choice in choices},
        "num_problems": 8,
    }
    (tmp_path / "beam-options.json").write_text(json.dumps(result))
    show(tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith("### Oracle") and "### Likelihood" in printed and "Teacher-forced" not in printed
