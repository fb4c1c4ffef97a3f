r"""Verdicts by kind, on texts with the verdict that a careful person gives, and properties of whole kinds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ollm_rl.answers.pool import shared_pool, verify

CASES = [json.loads(line) for line in Path(__file__).with_name("verdicts.jsonl").read_text().splitlines()]
KINDS = sorted({case["kind"] for case in CASES})

DIGITS = st.integers(2, 9)
# None of these is one of its digits, whatever these are. A letter stands for itself.
FORMULAS = (
    r"\frac{{{a}}}{{1{b}}}", r"\sqrt{{5{a}}}", r"{a}\sqrt{{1{b}}}", r"x^{{{a}}}-{b}", r"{a}\pi", r"({a}, {b})",
    r"{a}x+{b}", r"[{a}, 1{b})", r"(-\infty, {a}]", r"{a}:1{b}", r"\log_{{{a}}} 1{b}", r"{a}^{{{b}}}",
    r"\binom{{1{a}}}{{{b}}}",
    r"{a}+{b}i", r"\pm {a}", r"e^{{{a}}}", r"x_{{{a}}}", r"1{a} \pmod{{2{b}}}", r"{a}!+1{b}", r"\{{{a}, 1{b}\}}",
    r"x > {a}", r"x \ne {a}", r"|x| + {a}", r"{a} \pm \sqrt{{{b}}}", r"y = {a}x + {b}", r"0.\overline{{{a}}}",
)  # fmt: skip
SENTENCES = ("So we find ${}$.", r"\boxed{{{}}}", "The answer is ${}$.", "#### ${}$", r"Hence it is \({}\).")

# Pairs of an answer, a gold answer and the verdict, without delimiters.
ANSWERS = (
    ("12", "12", True), (r"\frac{3}{7}", "3/7", True), (r"\frac{3}{7}", "7", False), ("(2, 5)", "(2,5)", True),
    ("(2, 5)", "(5, 2)", False), (r"(2, 5]", "(2,5)", False), (r"2\sqrt{3}", r"\sqrt{12}", True),
    ("x + 1", "1 + x", True), (r"2\pi", "2", False), (r"-\frac{1}{2}", "-0.5", True), (r"x = 4", "4", True),
    (r"\{1, 3\}", "3, 1", True),
    ("50\\%", "0.5", True), (r"3:4", "3:5", False), (r"(x+1)(x-1)", "x^2-1", True), (r"2^{10}", "1024", True),
)  # fmt: skip
LAYOUTS: tuple[Callable[[str], str], ...] = (
    "  {} ".format, "\n{}\n".format, r"\displaystyle {}".format, r"\,{}\;".format, "{{{}}}".format, "${}$".format,
    r"\({}\)".format, r"\[{}\]".format, "$${}$$".format, lambda text: text.replace(" ", "  "),
    lambda text: text.replace("(", r"\left(").replace(")", r"\right)") if text.count("(") == text.count(")") else text,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts_of_a_kind_are_those_of_a_careful_person(kind: str) -> None:
    cases = [case for case in CASES if case["kind"] == kind]
    verdicts = shared_pool().verify_batch([case["completion"] for case in cases], [case["gold"] for case in cases])
    wrong = [
        (case, verdict) for case, verdict in zip(cases, verdicts, strict=True) if verdict.correct != case["correct"]
    ]
    assert not wrong
    assert {verdict.status for verdict in verdicts} <= {"ok", "no_answer"}


@settings(max_examples=150, deadline=None)
@given(template=st.sampled_from(FORMULAS), sentence=st.sampled_from(SENTENCES), a=DIGITS, b=DIGITS)
@example(template=r"\frac{{{a}}}{{1{b}}}", sentence="So we find ${}$.", a=5, b=2)
def test_a_formula_never_equals_one_of_its_digits(template: str, sentence: str, a: int, b: int) -> None:
    completion = sentence.format(template.format(a=a, b=b))
    assert not verify(completion, str(a)).correct
    assert not verify(completion, str(b)).correct


@settings(max_examples=150, deadline=None)
@given(
    case=st.sampled_from(ANSWERS),
    inner=st.sampled_from(LAYOUTS),
    outer=st.sampled_from(LAYOUTS),
    of_gold=st.sampled_from(LAYOUTS),
)
def test_delimiters_and_spacing_never_change_a_verdict(
    case: tuple[str, str, bool],
    inner: Callable[[str], str],
    outer: Callable[[str], str],
    of_gold: Callable[[str], str],
) -> None:
    answer, gold, expected = case
    assert verify(rf"\boxed{{{outer(inner(answer))}}}", of_gold(gold)).correct is expected


@settings(max_examples=100, deadline=None)
@given(
    case=st.sampled_from(ANSWERS),
    sentence=st.sampled_from(("So the result is {}.", "The answer is {}.", "Hence we get {}")),
    layout=st.sampled_from(("${}$", r"\({}\)", r"\[{}\]", "$${}$$", r"$\displaystyle {}$", r"$ {} $", "$$\n{}\n$$")),
    spacing=st.sampled_from((" ", "  ", "\t")),
)
def test_a_formula_in_a_sentence_counts_the_same_between_all_delimiters(
    case: tuple[str, str, bool], sentence: str, layout: str, spacing: str
) -> None:
    answer, gold, expected = case
    completion = sentence.replace(" ", spacing).format(layout.format(answer))
    assert verify(completion, gold).correct is expected
