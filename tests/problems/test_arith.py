"""The generated word problems: equal seeds, the stated shares, and solutions that match their labels."""

import math
import re
from typing import Any

import numpy as np
import pytest

from ollm_rl.problems.arith import ArithProblem, SolutionMix, generate

COUNT = 4000
STATED = re.compile(r"(?:The answer is|the answer is|La respuesta es|la respuesta es) (-?\d+)\.$")
EQUATION = re.compile(r"(-?\d+) ([+-]) (-?\d+) = (-?\d+)")
ENGLISH = {"first", "starts", "with", "we", "begin", "then", "add", "take", "away", "so", "the", "answer"}
SPANISH = {"hay", "empieza", "con", "luego", "suma", "resta", "la", "respuesta"}
LOSSES = ("loses", "gives away", "sells", "pierde", "regala", "vende")


@pytest.fixture(scope="module")
def problems() -> list[ArithProblem]:
    return generate(COUNT, np.random.default_rng(3))


def stated_answer(solution: str) -> int | None:
    match = STATED.search(solution)
    return int(match[1]) if match else None


def false_equations(solution: str) -> int:
    """How many of the equations in a text do not hold."""
    sums = {"+": lambda a, b: a + b, "-": lambda a, b: a - b}
    return sum(sums[sign](int(a), int(b)) != int(x) for a, sign, b, x in EQUATION.findall(solution))


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.lower()))


def answer_from_story(question: str) -> int:
    """The answer, computed only from the story."""
    opening, *events, _ = question.split(". ")
    total = int(re.findall(r"\d+", opening)[0])
    for event in events:
        (number,) = re.findall(r"\d+", event)
        total += -int(number) if any(word in event for word in LOSSES) else int(number)
    return total


def assert_share(hits: int, of: int, share: float) -> None:
    """Within 4 standard errors of a binomial share."""
    assert abs(hits / of - share) <= 4 * math.sqrt(share * (1 - share) / of), f"{hits} of {of}, expected {share}"


def test_equal_generators_give_equal_problems_and_others_others() -> None:
    first = generate(50, np.random.default_rng(1))
    assert generate(50, np.random.default_rng(1)) == first
    assert generate(20, np.random.default_rng(1)) == first[:20]
    other = generate(50, np.random.default_rng(2))
    assert len({problem.question for problem in first + other}) > 90


def test_the_shares_of_the_kinds_are_those_stated(problems: list[ArithProblem]) -> None:
    mix = SolutionMix()
    for style, share in (("short", mix.short), ("switch", mix.switch), ("loop", mix.loop)):
        assert_share(sum(problem.style == style for problem in problems), COUNT, share)
    assert {problem.style for problem in problems} == {"short", "careful", "switch", "loop"}
    # A short solution of a single step has nothing to skip.
    several = [p for p in problems if p.style == "short" and len(re.findall(r"\d+", p.question)) > 2]
    assert_share(sum(problem.wrong for problem in several), len(several), mix.short_wrong)
    assert not any(p.wrong for p in problems if p.style == "short" and len(re.findall(r"\d+", p.question)) == 2)
    worked = [problem for problem in problems if problem.style in ("careful", "switch")]
    assert_share(sum(problem.wrong for problem in worked), len(worked), mix.slip)


def test_a_custom_mix_is_followed() -> None:
    problems = generate(1000, np.random.default_rng(0), mix=SolutionMix(short=0.0, switch=0.3, loop=0.2, slip=0.5))
    assert not any(problem.style == "short" for problem in problems)
    for style, share in (("switch", 0.3), ("loop", 0.2), ("careful", 0.5)):
        assert_share(sum(problem.style == style for problem in problems), 1000, share)
    assert_share(sum(p.wrong for p in problems if p.style != "loop"), sum(p.style != "loop" for p in problems), 0.5)


def test_the_answer_follows_from_the_story_and_is_never_negative(problems: list[ArithProblem]) -> None:
    for problem in problems:
        assert problem.answer == answer_from_story(problem.question) >= 0, problem.question


def test_a_right_solution_with_working_states_the_answer_and_every_equation_holds(
    problems: list[ArithProblem],
) -> None:
    right = [problem for problem in problems if problem.style in ("careful", "switch") and not problem.wrong]
    assert len(right) > 1000
    for problem in right:
        assert stated_answer(problem.solution) == problem.answer, problem
        assert false_equations(problem.solution) == 0, problem
        steps = len(re.findall(r"\d+", problem.question)) - 1
        assert len(EQUATION.findall(problem.solution)) == steps, problem


def test_a_wrong_solution_states_a_wrong_answer(problems: list[ArithProblem]) -> None:
    wrong = [problem for problem in problems if problem.wrong]
    assert len(wrong) > 500
    for problem in wrong:
        stated = stated_answer(problem.solution)
        assert stated is not None and stated != problem.answer, problem
        # A slip is one false equation; the next ones continue with its result.
        assert false_equations(problem.solution) == (problem.style != "short"), problem


def test_a_right_short_solution_states_the_answer_without_an_equation(problems: list[ArithProblem]) -> None:
    short = [problem for problem in problems if problem.style == "short"]
    assert all("=" not in problem.solution for problem in short)
    assert all(stated_answer(problem.solution) == problem.answer for problem in short if not problem.wrong)


def test_a_loop_repeats_one_true_step_and_states_no_answer(problems: list[ArithProblem]) -> None:
    for problem in problems:
        if problem.style == "loop":
            assert stated_answer(problem.solution) is None and not problem.wrong
            equations = EQUATION.findall(problem.solution)
            assert equations.count(equations[-1]) >= 5 and false_equations(problem.solution) == 0


def test_only_switching_solutions_hold_words_of_both_languages(problems: list[ArithProblem]) -> None:
    for problem in problems:
        found = words(problem.solution)
        if problem.style == "switch":
            assert found & ENGLISH and found & SPANISH, problem
        else:
            assert not found & (SPANISH if problem.language == "en" else ENGLISH), problem


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"short": 1.2}, "short=1.2 is not a share"),
        ({"slip": -0.1}, "slip=-0.1 is not a share"),
        ({"loop": float("nan")}, "loop=nan is not a share"),
        ({"short": 0.7, "switch": 0.2, "loop": 0.2}, r"short \+ switch \+ loop = 1.100 is more than 1"),
    ],
)
def test_shares_outside_their_range_are_refused(shares: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SolutionMix(**shares)
