"""Inputs that hang, blow up memory or crash parsers, mixed with good ones: the pool stays whole, the verdicts right."""

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from ollm_rl.answers.pool import VerifierPool
from ollm_rl.experiments.bench.poison import GOLD, GOOD, POISON, mixed_checks, zombies
from tests.places import ROOT


def assert_verdicts(pool: VerifierPool, cases: list[tuple[str, str, bool]]) -> None:
    pending = [pool.submit(completion, gold) for completion, gold, _ in cases]
    verdicts = [check.result() for check in pending]
    good = [(v, case) for v, case in zip(verdicts, cases, strict=True) if case[1] != GOLD]
    assert not [case for verdict, case in good if (verdict.status, verdict.correct) != ("ok", case[2])]
    assert not [case for verdict, case in zip(verdicts, cases, strict=True) if verdict.correct and not case[2]]


def assert_whole(pool: VerifierPool) -> None:
    """Every child is there again, and works; none is left behind."""
    assert pool.submit(r"\boxed{2y}", "y + y").result().correct
    pool.verify_batch([r"\boxed{2y}"] * pool.num_workers * 4, ["y + 1"] * pool.num_workers * 4)
    assert len(pool.worker_pids()) == pool.num_workers
    assert not set(zombies()) & set(pool.worker_pids())


def test_there_are_at_least_forty_kinds_of_poison() -> None:
    assert len(POISON) >= 40


def test_no_poison_is_taken_for_an_answer_and_good_checks_beside_it_are_right() -> None:
    # Every eighth of those that keep a child busy, and all that extraction and comparison have to get through.
    cases = [
        (text, GOLD, False)
        for index, text in enumerate(POISON.values())
        if index % 8 == 0 or not text.startswith(r"\boxed") or len(text) > 1000
    ]
    with VerifierPool(2, time_limit=2.0) as pool:
        assert_verdicts(pool, [case for poisoned in cases for case in (poisoned, GOOD[0], GOOD[3])])
        assert_whole(pool)


@pytest.mark.slow
def test_mixed_checks_from_eight_threads_leave_the_pool_whole() -> None:
    cases = mixed_checks(200, 0.05, seed=0)
    with VerifierPool(2, time_limit=2.0) as pool, ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(assert_verdicts, pool, cases[start::8]) for start in range(8)]:
            done.result()
        assert_whole(pool)


@pytest.mark.slow
def test_mixed_checks_in_ray_actors_leave_their_pools_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    class Checker:
        def check(self, seed: int) -> bool:
            with VerifierPool(1, time_limit=2.0) as pool:
                assert_verdicts(pool, mixed_checks(50, 0.05, seed))
                assert_whole(pool)
            return True

    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where actors find this file
    # A local one, not the cluster that another test may have started.
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        actors = [ray.remote(Checker).remote() for _ in range(2)]
        assert ray.get([actor.check.remote(seed) for seed, actor in enumerate(actors)]) == [True, True]
    finally:
        ray.shutdown()


def _abandon(pids: "multiprocessing.Queue[list[int]]") -> None:
    pool = VerifierPool(1)
    pool.submit(r"\boxed{2y}", "y + y").result()
    pids.put(pool.worker_pids())


def test_a_process_that_ends_without_closing_its_pool_leaves_no_child_behind() -> None:
    context = multiprocessing.get_context("spawn")
    pids: multiprocessing.Queue[list[int]] = context.Queue()
    process = context.Process(target=_abandon, args=(pids,))
    process.start()
    (child,) = pids.get(timeout=120)
    process.join(60)
    assert process.exitcode == 0
    while is_running(child):  # at most until the test's time is over
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that nobody adopted is kept as a zombie, since a container may lack init."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
