"""Scores by the steps of training, over seeds."""

import json
from pathlib import Path

import pytest

from ollm_rl.errors import DamagedError, MissingError
from ollm_rl.experiments.studies.overfit_table import tables


def test_scores_are_means_over_seeds_in_the_order_of_the_steps(tmp_path: Path) -> None:
    for name, nll in (("240-0", 0.3), ("60-0", 0.5), ("60-1", 0.25)):
        scores = {"nll": [nll, 0, 1], "token_accuracy": [0.9, 0, 1], "answer_correct": [0.5, 0, 1]}
        (tmp_path / f"{name}.json").write_text(json.dumps({"columns": {"lora": scores}}))
    (tmp_path / "options-60-0").mkdir()
    nats, right, _ = tables(tmp_path)
    assert nats.columns == ["steps", "lora"]
    assert nats.rows == [["60", "0.375 (0.250 to 0.500)"], ["240", "0.300 (0.300 to 0.300)"]]
    assert right.rows[0] == ["60", "90.0 (90.0 to 90.0)"]


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"has no result; give the OUT of tiny_arith_overfit\.sh"):
        tables(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"columns": {"lora": {"nll": [0.5, 0, 1]}}}'])
def test_a_result_that_is_broken_or_incomplete_is_named_with_the_remedy(text: str, tmp_path: Path) -> None:
    (tmp_path / "60-0.json").write_text(text)
    with pytest.raises(DamagedError, match=r"60-0\.json cannot be read .*; delete it and start the script again$"):
        tables(tmp_path)


def test_other_files_in_the_folder_are_no_results(tmp_path: Path) -> None:
    (tmp_path / "notes-2.json").write_text("{}")
    with pytest.raises(MissingError, match="has no result"):
        tables(tmp_path)
