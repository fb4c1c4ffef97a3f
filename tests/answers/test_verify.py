"""Verdicts and the pool that gives them; expectations are worked by hand."""

import json
import multiprocessing
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.answers.pool import Verdict, VerifierPool, shared_pool, verify
from ollm_rl.errors import UsageError

POISON = r"\boxed{\dfrac{5^{5^{5^{5^5}}-4}-5}{16}}"
PAIRS = [json.loads(line) for line in (Path(__file__).with_name("answer_pairs.jsonl")).read_text().splitlines()]


@pytest.fixture
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(1, time_limit=1.0) as made:
        yield made


def test_of_300_pairs_written_by_hand_none_is_wrongly_equal_and_at_most_three_are_wrongly_different() -> None:
    assert len(PAIRS) == 300
    assert sum(pair["equal"] for pair in PAIRS) == 150
    verdicts = shared_pool().verify_batch(
        [rf"So it is $\boxed{{{pair['answer']}}}$." for pair in PAIRS], [pair["gold"] for pair in PAIRS]
    )
    found = list(zip(PAIRS, verdicts, strict=True))
    assert not [pair for pair, verdict in found if verdict.correct and not pair["equal"]]
    missed = [pair for pair, verdict in found if pair["equal"] and not verdict.correct]
    assert len(missed) <= 3, missed


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
        ("1 + x", "x + 1", True),
        ("c + b + a", "a + b + c", True),  # not "a + b" in some unit c
        (r"1 - \cos^2 t", r"\sin^2 t", True),
        (r"\tan 45^\circ", "1", True),
        ("3 or 4", "3", False),
        ("x", "y", False),
        (r"\sqrt{2}", "1.414213562", False),
    ],
)
def test_what_is_no_number_is_compared_by_meaning(answer: str, gold: str, correct: bool) -> None:
    assert verify(rf"\boxed{{{answer}}}", gold) == Verdict(correct, answer, "boxed", "ok")


def test_a_completion_without_an_answer_is_not_correct() -> None:
    assert verify("Well, hard to say.", "3") == Verdict(False, None, None, "no_answer")


def test_an_answer_that_is_not_text_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="^gold=72 is not text; give text, such as '72'$"):
        verify("The answer is 72.", 72)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="^completion=None is not text"):
        verify(None, "72")  # type: ignore[arg-type]


def test_a_very_long_answer_is_not_looked_at() -> None:
    assert verify(rf"\boxed{{{'x' * 1001}}}", "3").status == "too_long"
    assert verify(r"\boxed{x}", "3" * 1001).status == "too_long"
    loop = "|3|" * 11
    assert verify(rf"\boxed{{{loop}}}", "3").status == "too_long"
    assert verify(rf"\boxed{{{loop}}}", loop).correct
    assert verify(r"\boxed{|x-1| + |x-2|}", "|x-2| + |x-1|").correct
    assert verify(rf"\boxed{{{'3' * 1000}}}", "3" * 1000).correct


def test_a_gold_answer_that_cannot_be_parsed_equals_only_itself() -> None:
    gold = r"\begin{cases} \heartsuit & \clubsuit"
    verdict = verify(r"\boxed{\spadesuit}", gold)
    assert (verdict.correct, verdict.status, verdict.failed) == (False, "ok", False)
    assert verify(rf"\boxed{{{gold}}}", gold).correct


def test_an_answer_that_never_ends_times_out_and_the_next_check_works(pool: VerifierPool) -> None:
    verdict = pool.submit(POISON, "3").result()
    assert (verdict.correct, verdict.status, verdict.failed) == (False, "timeout", True)
    assert pool.submit(r"\boxed{2y}", "y + y").result().correct


def test_a_child_may_take_so_much_memory_and_processor_time_and_no_more() -> None:
    with VerifierPool(1, time_limit=3.0, memory_limit=900 * 1024**2) as pool:
        assert pool.submit(r"\boxed{2y}", "y + y").result().correct
        (pid,) = pool.worker_pids()
        limits = dict(re.findall(r"Max (address space|cpu time) +(\d+)", Path(f"/proc/{pid}/limits").read_text()))
    assert int(limits["address space"]) == 900 * 1024**2
    assert 3 < int(limits["cpu time"]) < 60  # what it has used so far, and the limit of a check


def test_a_child_that_died_is_replaced(pool: VerifierPool) -> None:
    assert pool.submit(r"\boxed{2y}", "y + y").result().correct
    (child,) = pool._children
    assert child.process is not None
    child.process.kill()
    child.process.wait()
    assert pool.submit(r"\boxed{3y}", "y + 2y").result().correct


def test_a_child_that_cannot_start_is_a_failure_of_the_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with VerifierPool(1) as pool:
        assert pool.submit(r"\boxed{2y}", "y + y").result() == Verdict(False, "2y", "boxed", "error")
        assert pool.submit(r"\boxed{5}", "5").result().correct


def test_verdicts_of_a_batch_come_in_order_and_from_all_children() -> None:
    golds = [f"{n} + x" for n in range(1, 13)]
    with VerifierPool(2) as pool:
        verdicts = pool.verify_batch([r"\boxed{x + 3}"] * 12, golds)
        assert len(pool.worker_pids()) == 2
    assert [verdict.correct for verdict in verdicts] == [gold == "3 + x" for gold in golds]


def test_threads_get_each_their_own_verdict() -> None:
    golds = [f"{n} + x" for n in range(1, 9)]
    with ThreadPoolExecutor(4) as threads:
        verdicts = list(threads.map(lambda gold: verify(r"\boxed{x + 3}", gold).correct, golds))
    assert verdicts == [gold == "3 + x" for gold in golds]


def _verify_in_a_process(results: "multiprocessing.Queue[bool]") -> None:
    results.put(verify(r"\boxed{2y}", "y + y").correct)
    results.put(verify(r"\boxed{2y}", "y + 1").correct)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_forked_and_a_spawned_process_check_with_children_of_their_own(method: str) -> None:
    assert verify(r"\boxed{2y}", "y + y").correct
    before = shared_pool().worker_pids()
    context: Any = multiprocessing.get_context(method)  # mypy does not know the processes of a context
    results: multiprocessing.Queue[bool] = context.Queue()
    process = context.Process(target=_verify_in_a_process, args=(results,))
    process.start()
    assert [results.get(timeout=120), results.get(timeout=120)] == [True, False]
    process.join(60)
    assert process.exitcode == 0
    assert verify(r"\boxed{3y}", "y + 2y").correct
    assert shared_pool().worker_pids() == before


def test_a_closed_pool_leaves_no_process_and_no_thread_and_refuses_work() -> None:
    pool = VerifierPool(2)
    assert pool.submit(r"\boxed{2y}", "y + y").result().correct
    processes = [child.process for child in pool._children]
    pool.close()
    assert all(process is None or process.returncode is not None for process in processes)
    assert not [thread for thread in pool._threads if thread in threading.enumerate()]
    with pytest.raises(RuntimeError, match="this VerifierPool is closed; make another"):
        pool.submit(r"\boxed{2y}", "y + y")


def test_limits_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers=0, time_limit=5.0 and max_characters=1000 must be positive"):
        VerifierPool(0)


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        ("/".join(["10"] * 25) + "x", r"\frac{1}{10^{23}x}", True),
        ("/".join(["10"] * 25) + "x", r"\frac{1}{10^{22}x}", False),
        ("/".join(["10"] * 25) + "x", "72", False),
        ("*".join(["1/2"] * 25), r"2^{-25}", True),
        (r"\frac{1}{2}/" * 25 + "3", "72", False),
        ("50%+" * 30 + "x", "x+15", True),
    ],
)
def test_a_loop_of_operations_is_compared_in_time(pool: VerifierPool, answer: str, gold: str, correct: bool) -> None:
    assert pool.submit(rf"\boxed{{{answer}}}", gold).result() == Verdict(correct, answer, "boxed", "ok")


def test_sympy_stays_out_of_the_process_that_asks_and_a_quick_verdict_starts_no_child() -> None:
    code = (
        "import sys; from ollm_rl.answers.pool import shared_pool, verify; "
        "assert verify('#### 7 apples', '7').correct; "
        "assert not shared_pool().worker_pids(); assert verify('#### x+1', '1+x').correct; "
        "assert not {'sympy', 'math_verify'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_second_opinion_finds_the_answer_by_itself(pool: VerifierPool) -> None:
    assert pool.submit_whole("Thus the final answer is $x + 1$.", "1 + x").result() == Verdict(
        True, None, "whole", "ok"
    )
    assert not pool.submit_whole("Thus the final answer is $x + 2$.", "1 + x").result().correct
    assert pool.submit_whole("1" * 20_000, "1").result().status == "too_long"
