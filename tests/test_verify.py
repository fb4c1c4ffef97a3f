"""Answers are found and compared; expectations are worked by hand."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ollm_rl import verify as verify_module
from ollm_rl.verify import Verdict, extract_answer, verify

POISON = r"\boxed{\dfrac{5^{5^{5^{5^5}}-4}-5}{16}}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"So \boxed{1} or rather \boxed{\frac{1}{\sqrt{2}}}.", (r"\frac{1}{\sqrt{2}}", "boxed")),
        (r"\boxed{\left\{1, 2\right\}}", (r"\left\{1, 2\right\}", "boxed")),
        (r"It is \boxed{7}. Check: \boxed{8", ("7", "boxed")),
        (r"#### 5 but \boxed{4}", ("4", "boxed")),
        ("The answer is 3.\n#### 1,200", ("1,200", "hashes")),
        ("The answer is 3. No, the answer is 3.5.", ("3.5", "phrase")),
        ("La respuesta es 14 manzanas. 2 + 2 = 4", ("14 manzanas", "phrase")),
        ("12 + 7 = 19. RESPUESTA: 19.", ("19", "phrase")),
        ("**Answer:** 5", ("5", "phrase")),
        ("The final answer is:\n$x$", ("$x$", "phrase")),
        ("x = 12, so 48 - 50 = -2.", ("-2", "last_number")),
        ("There are 20-6 left.", ("6", "last_number")),
        ("It costs $1,234.50", ("1,234.50", "last_number")),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_the_most_explicit_answer_is_extracted(text: str, expected: tuple[str, str] | None) -> None:
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        ("72", "72", True),
        ("72.0", "72", True),
        ("$1,200.50", "1200.5", True),
        (r"10{,}000", "10,000", True),
        ("25%", "25", True),
        ("14 apples.", "14", True),
        ("5 square feet", "5", True),
        ("0.5", "1/2", True),
        (r"-\dfrac{1}{2}", "-0.5", True),
        (r"$\text{Sunday}$", "Sunday", True),
        ("0.1", "0.10000000000000000001", False),
        ("0.333333", "1/3", False),
        ("-3", "3", False),
        ("12", "1,2", False),
    ],
)
def test_text_and_numbers_are_compared_exactly(answer: str, gold: str, correct: bool) -> None:
    assert verify(rf"\boxed{{{answer}}}", gold) == Verdict(correct, answer, "boxed", "ok")


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
        ("1 + x", "x + 1", True),
        ("(1, 2)", "(2, 1)", False),
        ("5 million", "5", False),
        ("3 or 4", "3", False),
        ("1/0", "0", False),
    ],
)
def test_what_is_no_number_is_compared_by_meaning(answer: str, gold: str, correct: bool) -> None:
    assert verify(rf"\boxed{{{answer}}}", gold) == Verdict(correct, answer, "boxed", "ok")


def test_a_completion_without_an_answer_is_not_correct() -> None:
    assert verify("Well, hard to say.", "3") == Verdict(False, None, None, "no_answer")


def test_a_very_long_answer_is_not_looked_at() -> None:
    assert verify(rf"\boxed{{{'x' * 1001}}}", "3").status == "too_long"
    assert verify(r"\boxed{x}", "3" * 1001).status == "too_long"
    assert verify(rf"\boxed{{{'3' * 1000}}}", "3" * 1000).correct


def test_an_answer_that_never_ends_times_out_and_the_next_check_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "TIME_LIMIT", 1.0)
    verdict = verify(POISON, "3")
    assert (verdict.correct, verdict.status) == (False, "timeout")
    assert verify(r"\boxed{2y}", "y + y").correct


def test_a_child_that_died_is_replaced() -> None:
    assert verify(r"\boxed{2y}", "y + y").correct
    process = verify_module._child._process
    assert process is not None
    process.kill()
    process.wait()
    assert verify(r"\boxed{3y}", "y + 2y").correct


def test_threads_get_each_their_own_verdict() -> None:
    golds = [f"{n} + x" for n in range(1, 9)]
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda gold: verify(r"\boxed{x + 3}", gold).correct, golds))
    assert verdicts == [gold == "3 + x" for gold in golds]


def test_sympy_stays_out_of_the_process_that_asks() -> None:
    code = (
        "import sys; from ollm_rl.verify import verify; assert verify('#### x+1', '1+x').correct; "
        "assert not {'sympy', 'math_verify'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
