"""Solutions of several lengths from human ones."""

import sys

import pytest

from ollm_rl.errors import MissingError
from ollm_rl.experiments.studies.lengths import lengths, main


def test_a_solution_is_written_in_every_length() -> None:
    human = "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether."
    assert dict(lengths({"solution": human + "\n", "answer": "72"})) == {
        "human": human,
        "equations": "48 / 2 = 24\n48 + 24 = 72",
        "last line": "Natalia sold 48+24 = 72 clips altogether.",
    }


def test_equations_that_miss_the_answer_and_a_single_line_are_left_out() -> None:
    assert dict(lengths({"solution": "He has 2+3 = 5 left.", "answer": "6"})) == {"human": "He has 2+3 = 5 left."}


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lengths", "gone.jsonl", "out.jsonl"])
    with pytest.raises(MissingError, match=r"gone.jsonl does not exist; give the JSON Lines"):
        main()
