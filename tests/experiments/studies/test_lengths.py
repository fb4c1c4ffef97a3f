"""Solutions of several lengths from human ones."""

from ollm_rl.experiments.studies.lengths import lengths


def test_a_solution_is_written_in_every_length() -> None:
    human = "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether."
    assert dict(lengths({"solution": human + "\n", "answer": "72"})) == {
        "human": human,
        "equations": "48 / 2 = 24\n48 + 24 = 72",
        "last line": "Natalia sold 48+24 = 72 clips altogether.",
    }


def test_equations_that_miss_the_answer_and_a_single_line_are_left_out() -> None:
    assert dict(lengths({"solution": "He has 2+3 = 5 left.", "answer": "6"})) == {"human": "He has 2+3 = 5 left."}
