"""Styles from human text: steps are those of the human solution, and shares and wrong answers are as stated."""

from typing import Any

import numpy as np
import pytest

from ollm_rl.answers import verify
from ollm_rl.errors import UsageError
from ollm_rl.experiments.studies import human_styles
from ollm_rl.experiments.studies.human_styles import build, restyled, steps_of, write
from ollm_rl.metrics import switches_language

CLIPS = "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May."


@pytest.mark.parametrize(
    ("solution", "answer", "steps"),
    [
        (CLIPS, "72", [("48 / 2", "24"), ("48 + 24", "72")]),
        (
            "She had $1,200 − $200 = $1,000.\nHalf is .5 x 1,000 = $500.",
            "500",
            [("1200 - 200", "1000"), (".5 * 1000", "500")],
        ),
        ("( 705.0 - ( 191.0 + 457.0 ) )", "57", [("191 + 457", "648"), ("705 - 648", "57")]),
        ("X=(3.0*(10.0-5.0))", "15", [("10 - 5", "5"), ("3 * 5", "15")]),
        ("6*12=x", "72", [("6 * 12", "72")]),
        ("It is 10/3 = 3.33.", "3.33", [("10 / 3", "3.33")]),
    ],
)
def test_steps_of_human_solutions(solution: str, answer: str, steps: list[tuple[str, str]]) -> None:
    assert steps_of(solution, answer) == steps


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("There are 2 + 2 = 5 apples.", "5"),  # not true
        ("There are 2 + 2 = 4 apples.", "8"),  # not the answer
        ("There are four apples.", "4"),
        ("5*x=35", "7"),  # an equation to solve
        ("( 1.0 / 3.0 )", "0.3333333333333333"),  # no decimals hold it
        ("( 1.0 / 0.0 )", "0"),
    ],
)
def test_solutions_without_steps_that_lead_to_the_answer_are_refused(solution: str, answer: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        steps_of(solution, answer)


def test_every_style_states_the_answer_and_a_skipped_step_makes_it_wrong() -> None:
    steps = steps_of(CLIPS, "72")
    right = {style: write(style, steps, CLIPS) for style in human_styles.SHARES}
    assert right == {
        "bare": "#### 72",
        "brief": "48 / 2 = 24\n48 + 24 = 72\n#### 72",
        "worked": f"{CLIPS}\n#### 72",
        "spanish": "Primero calculamos 48 / 2 = 24.\nLuego calculamos 48 + 24 = 72.\nLa respuesta es 72.",
    }
    assert all(verify(text, "72").correct for text in right.values())
    assert write("brief", steps, CLIPS, skip=True) == "48 / 2 = 24\n#### 24"
    question = "Natalia sold clips to 48 of her friends in April. How many clips did she sell altogether?"
    assert switches_language(question, right["spanish"])
    assert not switches_language(question, right["worked"])


def test_shares_of_styles_and_of_wrong_answers_are_those_stated() -> None:
    row = {"id": "clips", "question": "How many?", "solution": CLIPS, "answer": "72"}
    rows = list(restyled(row, 4000, np.random.default_rng(0)))
    for style, share in human_styles.SHARES.items():
        of_style = [each for each in rows if each["style"] == style]
        assert len(of_style) / 4000 == pytest.approx(share, abs=0.03)
        wrong = [each["wrong"] for each in of_style]
        assert np.mean(wrong) == pytest.approx(human_styles.WRONG[style], abs=0.05)
    assert all(verify(each["solution"], "72").correct is not each["wrong"] for each in rows[:100])


def word(number: int) -> dict[str, Any]:
    return {
        "id": f"w{number}",
        "question": f"What is {number} and 1?",
        "solution": f"{number} + 1 = x",
        "answer": number + 1,
    }


def test_no_problem_is_in_two_sets_and_equal_seeds_give_equal_sets() -> None:
    rows = {"gsm8k_train": [], "word_problems_train": [word(n) for n in range(320)], "word_problems_dev": [word(999)]}
    sets, counts = build(rows, 3)
    assert build(rows, 3)[0] == sets != build(rows, 4)[0]
    questions = [{row["question"] for row in sets[name]} for name in ("sft", "rl", "test")]
    assert [len(part) for part in questions] == [10, 10, 301]
    assert not questions[0] & questions[1] and not (questions[0] | questions[1]) & questions[2]
    assert sum(counts["solutions"].values()) == len(sets["sft"]) == 40
    with pytest.raises(UsageError, match="word_problems_train has 300 problems"):
        build({**rows, "word_problems_train": rows["word_problems_train"][:300]}, 3)
