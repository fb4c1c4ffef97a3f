"""Measure the answer checker.

python -m ollm_rl.experiments.bench.verify DATA [--json FILE] [--checks 10000] [--cases FILE] [--only PART]

DATA is a folder with gsm8k_train.jsonl, math_train.jsonl and word_problems_train.jsonl. The parts are:

- ``speed``: the quick comparisons against direct calls of math-verify.
- ``agreement``: verdicts on gold solutions and on shuffled gold answers.
- ``unboxed``: the same on MATH's solutions without the boxes, whose contents stay in the text.
- ``cases``: verdicts by kind on a file of completions (``kind``, ``completion``, ``gold``) with the right verdict
  (``correct``).
- ``poison``: a pool under mixed checks from the main thread, from 8 threads and in Ray actors.
- ``rollout``: the time that checking adds to a rollout of 512 episodes.
"""

import argparse
import json
import random
import re
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ollm_rl.answers.pool import Verdict, VerifierPool, verify
from ollm_rl.experiments.bench.poison import GOLD, mixed_checks, zombies
from ollm_rl.experiments.script import positive, start
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.sources import load_problems
from ollm_rl.runs import origin, write_atomic

SEED = 0
DIRECT = 200  # completions per timing of math-verify
TIME_LIMIT = 2.0  # seconds a poisoned check may take
SHARE = 0.03  # share of poisoned checks
SHUFFLES = 3  # of the gold answers, for unboxed solutions

_BOX = re.compile(r"\\f?box(?:ed)?\s*(?={)|\\boxed\s*")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def speed(data: Path) -> dict[str, Any]:
    """Verdicts per second in one thread on GSM8K's gold solutions, ours and math-verify's in turn (A B A B)."""
    from math_verify import parse
    from math_verify import verify as compare_directly

    problems = load_problems(f"jsonl:{data / 'gsm8k_train.jsonl'}")
    texts = [f"{problem.solution}\n#### {problem.answer}" for problem in problems]
    golds = [problem.answer for problem in problems]

    def ours() -> float:
        started = time.perf_counter()
        for text, gold in zip(texts, golds, strict=True):
            verify(text, gold)
        return len(texts) / (time.perf_counter() - started)

    def unmarked() -> float:
        started = time.perf_counter()
        for problem in problems:
            verify(problem.solution, problem.answer)
        return len(texts) / (time.perf_counter() - started)

    def direct() -> float:
        started = time.perf_counter()
        for text, gold in zip(texts[:DIRECT], golds[:DIRECT], strict=True):
            compare_directly(parse(f"${gold}$"), parse(text))
        return DIRECT / (time.perf_counter() - started)

    direct()  # warms up
    rounds = [(ours(), direct()) for _ in range(4)]
    return {
        "ours_per_second": [round(own_speed) for own_speed, _ in rounds],
        "math_verify_per_second": [round(direct_speed, 1) for _, direct_speed in rounds],
        "ratios": [round(own_speed / direct_speed, 1) for own_speed, direct_speed in rounds],
        "unmarked_per_second": round(statistics.median(unmarked() for _ in range(3))),
    }


def agreement(data: Path) -> dict[str, Any]:
    """Share of gold solutions judged right, and of solutions judged wrong against another problem's answer."""
    result: dict[str, Any] = {}
    with VerifierPool() as pool:
        for name in ("gsm8k_train", "math_train", "word_problems_train"):
            problems = load_problems(f"jsonl:{data / name}.jsonl")
            golds = [problem.answer for problem in problems]
            # The bare equations of word_problems state no answer, so the marker is added to them, as for training.
            marked = name == "word_problems_train"
            texts = [f"{p.solution}\n#### {p.answer}" if marked else p.solution for p in problems]
            verdicts = pool.verify_batch(texts, golds)
            misses = [(p, v) for p, v in zip(problems, verdicts, strict=True) if not v.correct]
            shuffled = random.Random(SEED).sample(golds, len(golds))
            mixed = pool.verify_batch(texts, shuffled)
            # Two answers differ if their texts do, which does not use our comparison. Those judged equal are listed.
            differing = [
                (own, gold, verdict)
                for own, gold, verdict in zip(golds, shuffled, mixed, strict=True)
                if own.replace(" ", "") != gold.replace(" ", "")
            ]
            result[name] = {
                "solutions": len(problems),
                "correct": 1 - len(misses) / len(problems),
                "marker_added": marked,
                "misses": dict(Counter(_kind(problem, verdict) for problem, verdict in misses)),
                "shuffled_differing": len(differing),
                "shuffled_wrong": sum(not verdict.correct for _, _, verdict in differing) / len(differing),
                "shuffled_statuses": dict(Counter(verdict.status for _, _, verdict in differing)),
                "shuffled_right": [[own, v.extracted, gold] for own, gold, v in differing if v.correct],
            }
    return result


def unboxed(data: Path) -> dict[str, Any]:
    """The same on MATH's solutions without boxes, whose contents stay; and on the numbers within their gold answers.

    Judged right is what the own answer in a box is not.
    """
    problems = load_problems(f"jsonl:{data / 'math_train'}.jsonl")
    texts = [_BOX.sub("", problem.solution) for problem in problems]
    golds = [problem.answer for problem in problems]
    draw = random.Random(SEED)
    pairs = [pair for _ in range(SHUFFLES) for pair in zip(texts, golds, draw.sample(golds, len(golds)), strict=True)]
    parts = [(text, gold, number) for text, gold in zip(texts, golds, strict=True) for number in _NUMBER.findall(gold)]
    result: dict[str, Any] = {"solutions": len(problems)}
    with VerifierPool() as pool:
        verdicts = pool.verify_batch(texts, golds)
        result["correct"] = sum(verdict.correct for verdict in verdicts) / len(problems)
        result["methods"] = dict(Counter(str(verdict.method) for verdict in verdicts))
        for name, wrong in (("shuffled", pairs), ("numbers_within", parts)):
            differing = [pair for pair in wrong if pair[1].replace(" ", "") != pair[2].replace(" ", "")]
            found = pool.verify_batch([text for text, _, _ in differing], [other for _, _, other in differing])
            right = [[*pair[1:], v.extracted] for pair, v in zip(differing, found, strict=True) if v.correct]
            same = pool.verify_batch([rf"\boxed{{{gold}}}" for gold, _, _ in right], [other for _, other, _ in right])
            wrongly = [row for row, verdict in zip(right, same, strict=True) if not verdict.correct]
            result[name] = {"pairs": len(differing) - len(right) + len(wrongly), "judged_right": wrongly}
    return result


def cases(path: Path) -> dict[str, Any]:
    """Verdicts on completions of which the right verdict is known, by kind; and the mistaken ones."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with VerifierPool() as pool:
        verdicts = pool.verify_batch([row["completion"] for row in rows], [row["gold"] for row in rows])
    kinds: dict[str, Counter[str]] = {}
    mistaken = []
    for row, verdict in zip(rows, verdicts, strict=True):
        counts = kinds.setdefault(row["kind"], Counter(cases=0, right_judged_wrong=0, wrong_judged_right=0))
        counts["cases"] += 1
        if verdict.correct != row["correct"]:
            counts["wrong_judged_right" if verdict.correct else "right_judged_wrong"] += 1
            mistaken.append([row["completion"], row["gold"], verdict.extracted])
    total = sum(kinds.values(), Counter[str]())
    return {"kinds": kinds, "all": total, "mistaken": mistaken}


def _kind(problem: Problem, verdict: Verdict) -> str:
    """Why a gold solution's verdict is not "correct", as far as its text shows."""
    if verdict.status != "ok":
        return verdict.status
    if verdict.method != "last_number":
        return f"another answer stated ({verdict.method})"
    digits = problem.answer.replace(",", "")
    sentence = problem.solution.replace(",", "").strip().splitlines()[-1]
    if verdict.extracted is not None and "." in verdict.extracted:
        return "decimal where the gold answer is in cents, per cent or rounded"
    return "another number of the last line" if digits in sentence else "gold answer not in the last line"


def poison(count: int) -> dict[str, Any]:
    """``count`` mixed checks in each of three settings; an assertion fails if a good verdict is wrong."""
    result: dict[str, Any] = {}
    for name, run in (("main thread", _from_main), ("8 threads", _from_threads), ("2 Ray actors", _in_actors)):
        started = time.perf_counter()
        result[name] = {**run(count), "seconds": round(time.perf_counter() - started, 1)}
    return result


def _checked(pool: VerifierPool, cases: list[tuple[str, str, bool]]) -> Counter[str]:
    pending = [pool.submit(completion, gold) for completion, gold, _ in cases]
    statuses: Counter[str] = Counter()
    for check, (text, gold, right) in zip(pending, cases, strict=True):
        verdict = check.result()
        kind = "poisoned" if gold == GOLD else "good"
        statuses[f"{kind} {verdict.status}"] += 1
        expected = not verdict.correct if kind == "poisoned" else (verdict.status, verdict.correct) == ("ok", right)
        assert expected, (text[:200], gold, verdict)
    return statuses


def _state(pool: VerifierPool, statuses: Counter[str]) -> dict[str, Any]:
    """State of the pool after the checks and some more work: statuses, number of children, and memory."""
    pool.verify_batch([r"\boxed{2y}"] * 50, ["y + 1"] * 50)
    pids = pool.worker_pids()
    memory = [_megabytes(pid) for pid in pids]
    assert len(pids) == pool.num_workers
    assert not zombies()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"statuses": dict(statuses), "workers": len(pids), "worker_mb": memory, "own_peak_mb": own, "zombies": 0}


def _megabytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def _from_main(count: int) -> dict[str, Any]:
    with VerifierPool(2, time_limit=TIME_LIMIT) as pool:
        return _state(pool, _checked(pool, mixed_checks(count, SHARE, SEED)))


def _from_threads(count: int) -> dict[str, Any]:
    cases = mixed_checks(count, SHARE, SEED + 1)
    with VerifierPool(2, time_limit=TIME_LIMIT) as pool, ThreadPoolExecutor(8) as threads:
        parts = threads.map(lambda start: _checked(pool, cases[start::8]), range(8))
        return _state(pool, sum(parts, Counter[str]()))


def _in_actors(count: int) -> dict[str, Any]:
    import ray

    class Checker:
        def check(self, seed: int) -> dict[str, Any]:
            with VerifierPool(1, time_limit=TIME_LIMIT) as pool:
                return _state(pool, _checked(pool, mixed_checks(count // 2, SHARE, seed)))

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        actors: list[Any] = [ray.remote(Checker).remote() for _ in range(2)]
        return {"actors": ray.get([actor.check.remote(SEED + 2 + index) for index, actor in enumerate(actors)])}
    finally:
        ray.shutdown()


def rollout() -> dict[str, Any]:
    """Time that checking adds to rollouts of 512 tiny-arith episodes over tokens; only the first has a start-up."""
    from ollm_rl.agents.config import RLConfig
    from ollm_rl.agents.training.trainer import train

    with tempfile.TemporaryDirectory() as folder:
        settings = RLConfig(
            out=Path(folder, "run"), model="tiny-arith", action_space="tokens", episodes=512, iterations=3, lora_rank=2
        )
        history = json.loads((train(settings) / "metrics.json").read_text())
    rows = [{name: row[name] for name in ("seconds_rollout", "seconds_verify", "verifier_failures")} for row in history]
    return {"iterations": rows, "share": [round(r["seconds_verify"] / r["seconds_rollout"], 5) for r in rows]}


def main() -> None:
    """Measure the requested parts, print the result, and write it if ``--json`` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--checks", type=positive, default=10_000, help="mixed checks per setting of the poison part")
    parts: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "speed": lambda args: speed(args.data),
        "agreement": lambda args: agreement(args.data),
        "unboxed": lambda args: unboxed(args.data),
        "cases": lambda args: cases(args.cases),
        "poison": lambda args: poison(args.checks),
        "rollout": lambda args: rollout(),
    }
    parser.add_argument("--cases", type=Path, help="file of the cases part, which is left out without one")
    parser.add_argument("--only", choices=list(parts))
    args = parser.parse_args()
    if args.only == "cases" and args.cases is None:
        parser.error("--only cases needs --cases FILE")
    result: dict[str, Any] = {"seed": SEED, **origin()}
    for name, part in parts.items():
        if args.only == name or (args.only is None and (name != "cases" or args.cases)):
            result[name] = part(args)
            print(json.dumps({name: result[name]}, indent=1), flush=True)
    if args.json:
        write_atomic(args.json, json.dumps(result, indent=1))


if __name__ == "__main__":
    start(main)
