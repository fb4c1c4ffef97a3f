"""Completions are measured while the host waits for the device, each once."""

import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from ollm_rl.agents.completions import Checks, Completion, rewarded
from ollm_rl.answers.pool import Verdict, VerifierPool, shared_pool
from ollm_rl.errors import RunWarning
from ollm_rl.metrics import language, measuring
from ollm_rl.metrics.language import Switching
from ollm_rl.metrics.measuring import MeasuringPool
from ollm_rl.problems.problem import Problem
from tests.places import ROOT
from tests.tiny_models import EOS, tiny_tokenizer

TEXTS = ["Hay 3 y 4 manzanas, así que la respuesta es 7.", "7", "The answer is 7.", "7 7 7 7 7 7 7 7 7 7 7 7"]
QUESTION = "There are 3 apples and 4 apples. How many apples are there?"
PROBLEMS = [Problem(id=str(n), question=QUESTION, solution="", answer="7", language="en") for n in range(len(TEXTS))]


def test_what_is_measured_in_a_wait_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    correct = measuring.measure_switching

    def counted(question: str, text: str) -> Switching:
        seen.append(text)
        return correct(question, text)

    monkeypatch.setattr(measuring, "measure_switching", counted)
    tokenizer = tiny_tokenizer()
    checks = Checks(PROBLEMS, tokenizer, [EOS], shared_pool())
    tokens = [tokenizer(text)["input_ids"] + [EOS] * (text != TEXTS[3]) for text in TEXTS]
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    checks.begin([2, 0], [tokens[2], tokens[0]])
    checks.measure(lambda: len(seen) == 1)
    assert seen == [texts[2]]
    checks.begin([1, 3], [tokens[1], tokens[3]])
    checks.measure(lambda: True)
    assert len(seen) == 1
    monkeypatch.setattr(language, "measure_switching", counted)  # as the term of the reward calls it
    found = [rewarded(one, {"correctness": 1.0, "language": 0.5}, max_tokens=64) for one in checks.finish()]
    assert [one.terms["language"] for one in found] == [0.0, 1.0, 1.0, 1.0]
    assert sorted(seen) == sorted(texts)
    found = pickle.loads(pickle.dumps(found))  # as from a worker
    assert [one.row()["switched"] for one in found] == [True, False, False, False]
    assert ["no_end" in one.row()["flags"] for one in found] == [False, False, False, True]
    assert len(seen) == len(texts)
    alone = [
        Completion(
            problem=one.problem, text=one.text, tokens=one.tokens, terminated=one.terminated, verdict=one.verdict
        )
        for one in found
    ]
    assert [(one.switching, one.flags) for one in alone] == [(one.switching, one.flags) for one in found]


def test_other_processes_measure_and_check_the_same_and_are_replaced_by_this_one_if_they_die(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [*TEXTS, r"So it is \boxed{(x-1)(x+1)}."]
    problems = [*PROBLEMS[:3], replace(PROBLEMS[3], answer="8")]
    problems.append(Problem(id="4", question="What is it?", solution="", answer="x^2 - 1", language="en"))
    tokens = [[index] + [EOS] * (index != 3) for index in range(len(texts))]
    tokenizer: Any = SimpleNamespace(batch_decode=lambda rows, **_: [texts[row[0]] for row in rows])
    checked_here: list[str] = []
    submit = VerifierPool.submit

    def recording(self: VerifierPool, completion: str, gold: str) -> Future[Verdict]:
        checked_here.append(gold)
        return submit(self, completion, gold)

    monkeypatch.setattr(VerifierPool, "submit", recording)

    def found(pool: MeasuringPool | None) -> list[dict[str, Any]]:
        checks = Checks(problems, tokenizer, [EOS], shared_pool(), pool)
        checked_here.clear()
        for episodes in ([2, 0, 4], [1, 3]):
            checks.begin(episodes, [tokens[episode] for episode in episodes])
        return [one.row() for one in checks.finish()]

    alone = found(None)
    assert [row["switched"] for row in alone] == [True, False, False, False, False]
    assert [row["correct"] for row in alone] == [True, True, True, False, True]
    assert checked_here == ["7", "7", "x^2 - 1", "7", "8"]  # the third takes math-verify
    pool = MeasuringPool(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found(pool) == alone
    assert not checked_here
    (process,) = psutil.Process(pool.first.pid).children()
    process.kill()
    psutil.wait_procs([process], timeout=10)
    with pytest.warns(RunWarning, match="measures its share itself"):
        assert found(pool) == alone
    pool.close()


def test_measuring_processes_end_with_the_one_that_started_them() -> None:
    code = (
        "import os, psutil, signal\n"
        "from ollm_rl.metrics.measuring import MeasuringPool, Text\n"
        "pool = MeasuringPool(2)\n"
        "pool.submit([Text('3 + 4 = ?', '7', '7', True)]).result()\n"
        "print(pool.first.pid, *(child.pid for child in psutil.Process(pool.first.pid).children()), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pids = list(map(int, done.stdout.split()))
    assert len(pids) >= 2
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    assert not psutil.wait_procs(processes, timeout=10)[1]


def test_processes_measure_only_beside_a_gpu_and_with_cores_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, device, expected in ((64, "cpu", None), (7, "cuda", None), (8, "cuda", 4), (64, "cuda", 8)):
        monkeypatch.setattr(measuring, "_shared", [])
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        pool = measuring.measuring_pool(device)
        assert (None if pool is None else pool.num_workers) == expected
        assert pool is measuring.measuring_pool(device)
        if pool is not None:
            pool.close()
