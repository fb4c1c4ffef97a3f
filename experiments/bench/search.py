"""Search over options at equal numbers of generated tokens, and what forking saves, on tiny-arith.

python -m ollm_rl.experiments.bench.search --out runs/search

For every seed, options are trained and tested on problems of that seed: best-of-N, beam search and tree search of the
option policy, best-of-N of the backbone, and the three readings of "optimal latent selection". Then the CPU time of
tree and beam search is measured with forked branches and with branches that run their prefix again, in turn (A B A B).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ollm_rl.agents.evaluation.free_running import evaluate
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.agents.search.config import SearchSettings
from ollm_rl.agents.search.run import search
from ollm_rl.experiments.script import positive, start
from ollm_rl.metrics.statistics import bootstrap_interval
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from ollm_rl.pretrain.teacher_forced.run import teacher_forced
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.sources import load_problems
from ollm_rl.report.tables import markdown
from ollm_rl.runs import origin, write_atomic

BACKBONE = "tiny-arith"
BASELINE = "best-of-n"  # the search that beam and mcts are compared with
# Most tokens per completion where forking is timed; with other questions in the prompt, tiny-arith does not stop.
TIMED_LIMIT = 32
SEARCHES: dict[str, dict[str, Any]] = {
    "best-of-n": {"method": "best-of-n"},
    "beam": {"method": "beam"},
    "mcts": {"method": "mcts"},
    "mcts, verifier in the tree": {"method": "mcts", "leaf_value": "verifier"},
}


def options(args: argparse.Namespace, seed: int) -> Path:
    """The option SFT run of a seed, trained if it is missing."""
    return run_sft(
        SFTConfig(
            out=args.out / f"options-{seed}",
            backbone=BACKBONE,
            max_steps=args.steps,
            batch_size=32,
            learning_rate=3e-3,
            device="cpu",
            seed=seed,
        )
    )


def compare_methods(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Run all searches of one seed on the same problems."""
    folder = str(options(args, seed))
    problems = load_problems("arith", split="test", limit=args.problems, seed=seed)
    policy, tokenizer = load_policy(folder)
    backbone, _ = load_policy(BACKBONE)
    shared: dict[str, Any] = {"budget_tokens": args.budget, "seed": seed, "max_new_tokens": 96}
    results = {
        name: search(policy, tokenizer, problems, SearchSettings(**shared, **changes))
        for name, changes in SEARCHES.items()
    }
    sampled = SearchSettings(method="best-of-n", **shared)
    results["vocabulary best-of-n"] = search(backbone, tokenizer, problems, sampled)
    greedy = evaluate(policy, tokenizer, problems, max_new_tokens=96, num_slots=128)
    forced = teacher_forced(OptionModel.from_pretrained(folder), tokenizer, problems, seed=seed)["columns"]["oracle"]
    return {
        "seed": seed,
        "budgets": results[BASELINE]["budgets"],
        "correct_at": {name: _columns(result) for name, result in results.items()},
        "pass_at_k": {name: result["pass_at_k"] for name, result in results.items() if result["pass_at_k"]},
        "tokens": {name: result["generated_tokens"] for name, result in results.items()},
        "recomputed": sum(result["recomputed_tokens"] for result in results.values()),
        "verifier_failures": sum(result["verifier_failures"] for result in results.values()),
        "greedy": [row["correct"] for row in greedy["completions"]],
        "greedy_tokens": greedy["completion_tokens"],
        "forced_oracle": {name: forced[name] for name in ("token_accuracy", "answer_correct")},
        **origin(),
    }


def _columns(result: dict[str, Any]) -> dict[str, list[list[bool]]]:
    """For each choice rule, whether each problem is solved within each budget."""
    return {name: [row["correct_at"][name] for row in result["problems"]] for name in result["accuracy"]}


def long_prompts(problems: list[Problem], tokens: int, tokenizer: Any) -> list[Problem]:
    """Prefix other questions until prompts have ``tokens`` tokens; the answers of the problems do not matter."""
    extended = []
    for index, problem in enumerate(problems):
        question, other = problem.question, index
        while len(tokenizer(question).input_ids) < tokens:
            other = (other + 1) % len(problems)
            question = f"{problems[other].question} {question}"
        extended.append(replace(problem, question=question))
    return extended


def time_forking(args: argparse.Namespace) -> list[dict[str, Any]]:
    """CPU seconds with and without forking, one case per search and prompt length."""
    policy, tokenizer = load_policy(str(options(args, args.seeds[0])))
    problems = load_problems("arith", split="test", limit=args.timed_problems, seed=args.seeds[0])
    cases: dict[str, tuple[dict[str, Any], list[Problem]]] = {}
    for length, timed in (("short", problems), ("long", long_prompts(problems, 180, tokenizer))):
        for method in ("mcts", "beam"):
            cases[f"{method}, {length} prompts"] = ({"method": method}, timed)
        # A value head ends a branch after one stretch, so that the tokens give the most branches. Its values, which are
        # untrained, do not matter.
        cases[f"mcts without rollouts, {length} prompts"] = ({"method": "mcts", "leaf_value": "value_head"}, timed)
    return [_time_case(name, policy, tokenizer, *case, args) for name, case in cases.items()]


def _time_case(
    name: str, policy: Policy, tokenizer: Any, changes: dict[str, Any], problems: list[Problem], args: Any
) -> dict[str, Any]:
    def run(fork: bool) -> dict[str, Any]:
        started = time.process_time()
        settings = SearchSettings(budget_tokens=args.timed_budget, max_new_tokens=TIMED_LIMIT, **changes)
        result = search(policy, tokenizer, problems, settings, fork=fork)
        return {**result, "seconds": time.process_time() - started}

    turns = [(run(True), run(False)) for _ in range(args.repeats)]
    forked, recomputed = turns[0]
    return {
        "case": name,
        "prompt_tokens": float(np.mean([len(tokenizer(problem.question).input_ids) for problem in problems])),
        "same_result": [_texts(forked), _texts(forked)] == [_texts(recomputed), _texts(turns[-1][1])],
        "generated": forked["generated_tokens"],
        "recomputed": [forked["recomputed_tokens"], recomputed["recomputed_tokens"]],
        "seconds": [[result["seconds"] for result in turn] for turn in turns],
        "ratio": statistics.median(without["seconds"] / with_it["seconds"] for with_it, without in turns),
    }


def _texts(result: dict[str, Any]) -> list[list[str]]:
    return [[completion["completion"] for completion in row["completions"]] for row in result["problems"]]


def interval(values: np.ndarray) -> str:
    """Mean in per cent with its 95 % bootstrap interval over the problems of all seeds."""
    low, high = bootstrap_interval(values.ravel())
    return f"{100 * values.mean():.1f} ({100 * low:.1f}, {100 * high:.1f})"


def tables(rows: list[dict[str, Any]], timed: list[dict[str, Any]]) -> str:
    """All results as Markdown."""
    budgets = rows[0]["budgets"]
    solved = {
        (choice, name): np.concatenate([np.array(row["correct_at"][name][choice], float) for row in rows])
        for name, columns in rows[0]["correct_at"].items()
        for choice in columns
    }
    parts = []
    for choice in ("oracle", "majority", "likelihood"):
        methods = {name: values for (chosen, name), values in solved.items() if chosen == choice}
        lines = [[name, *(interval(column) for column in values.T)] for name, values in methods.items()]
        for name in ("beam", "mcts"):
            differences = (methods[name] - methods[BASELINE]).T
            cells = [interval(column) if column.any() else "0 (all alike)" for column in differences]
            lines.append([f"{name} minus {BASELINE}", *cells])
        parts.append(markdown([f"{choice}, % solved", *(f"{budget} tokens" for budget in budgets)], lines))
    most = {name: min(len(row["pass_at_k"][name]) for row in rows) for name in rows[0]["pass_at_k"]}
    header = ["samples, %", *(f"pass@{2**power}" for power in range(max(most.values())))]
    lines = [
        [name, *(f"{100 * statistics.mean(row['pass_at_k'][name][str(2**p)] for row in rows):.1f}" for p in range(n))]
        for name, n in most.items()
    ]
    parts.append(markdown(header, [line + [""] * (len(header) - len(line)) for line in lines]))
    parts.append(markdown(["optimal latent selection", "% right"], _three_ways(rows, solved)))
    header = [
        "case",
        "prompt",
        "generated",
        "run again, forked",
        "run again, not forked",
        "same result",
        "ratio of times",
    ]
    lines = [
        [
            case["case"],
            f"{case['prompt_tokens']:.0f}",
            f"{case['generated']:,}",
            *(f"{count:,}" for count in case["recomputed"]),
            "yes" if case["same_result"] else "no",
            f"{case['ratio']:.2f} ({', '.join(f'{without / with_it:.2f}' for with_it, without in case['seconds'])})",
        ]
        for case in timed
    ]
    parts.append(markdown(header, lines))
    return "\n\n".join(parts)


def _three_ways(rows: list[dict[str, Any]], solved: dict[tuple[str, str], np.ndarray]) -> list[list[str]]:
    def forced(name: str) -> str:
        return f"{100 * statistics.mean(row['forced_oracle'][name][0] for row in rows):.1f}"

    greedy = np.concatenate([np.array(row["greedy"], float) for row in rows])
    tokens = statistics.mean(row["greedy_tokens"] for row in rows)
    free = {name: values[:, -1] for (choice, name), values in solved.items() if choice == "oracle"}
    budget = rows[0]["budgets"][-1]
    return [
        ["teacher-forced oracle, tokens (given the true tokens before each)", forced("token_accuracy")],
        ["teacher-forced oracle, answers (given the true working)", forced("answer_correct")],
        *([f"free-running oracle search at {budget} tokens, {name}", interval(free[name])] for name in SEARCHES),
        [f"the policy without search, greedy ({tokens:.1f} tokens)", interval(greedy)],
    ]


def take(path: Path, measure: Callable[[], Any]) -> Any:
    """Content of a JSON file, measured and written if it is missing."""
    if not path.exists():
        write_atomic(path, json.dumps(measure(), indent=1))
    return json.loads(path.read_text())


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the results; those already there are not measured again"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=positive, default=150, help="steps of option SFT")
    parser.add_argument("--problems", type=positive, default=128, help="problems per seed")
    parser.add_argument("--budget", type=positive, default=192, help="generated tokens per problem")
    parser.add_argument("--timed-problems", type=positive, default=64)
    parser.add_argument("--timed-budget", type=positive, default=96)
    parser.add_argument("--repeats", type=positive, default=2, help="timings with and without forking")
    args = parser.parse_args()
    rows = [take(args.out / f"seed-{seed}.json", partial(compare_methods, args, seed)) for seed in args.seeds]
    timed = take(args.out / "forking.json", partial(time_forking, args))
    print(f"{rows[-1]['machine']}, commit {rows[-1]['commit']}, {torch.get_num_threads()} threads\n")
    print(tables(rows, timed))


if __name__ == "__main__":
    start(main)
