"""Free-running evaluation of a policy: accuracy with an interval, language switching, degeneracy."""

import json
import time
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.checks import completion_texts
from ollm_rl.agents.config import EvalConfig
from ollm_rl.agents.loading import load_policy
from ollm_rl.agents.rollout import Policy, collect
from ollm_rl.backbones import context_length
from ollm_rl.degeneracy import FLAGS, degeneracy
from ollm_rl.devices import resolve_device
from ollm_rl.engine import DecodeEngine
from ollm_rl.language import measure_switching
from ollm_rl.problems import Problem, load_problems
from ollm_rl.prompts import encode_prompts
from ollm_rl.runs import origin, write_atomic
from ollm_rl.statistics import bootstrap_interval
from ollm_rl.verify import FAILURES, Verdict, shared_pool


def run_eval(config: EvalConfig) -> dict[str, Any]:
    """Evaluate what ``config.model`` names; writes and returns the result of ``evaluate`` with its origin.

    Raises:
        ValueError: If a setting, the model or the data does not fit.
        FileNotFoundError: If a folder holds no model.
    """
    device = resolve_device(config.device)
    problems = load_problems(config.data, split=config.split, limit=config.limit, seed=config.seed)
    policy, tokenizer = load_policy(config.model, dtype=getattr(torch, config.dtype), device=device)
    generator = torch.Generator().manual_seed(config.seed) if config.sample else None
    result = evaluate(
        policy,
        tokenizer,
        problems,
        max_new_tokens=config.max_new_tokens,
        num_slots=config.num_slots,
        generator=generator,
        name=config.model,
    )
    result |= {"model": config.model, "data": config.data, "split": config.split, "seed": config.seed, **origin()}
    if config.out is not None:
        write_atomic(config.out, json.dumps(result, indent=1))
    return result


def evaluate(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    max_new_tokens: int,
    num_slots: int,
    generator: torch.Generator | None = None,
    engine: DecodeEngine | None = None,
    name: str = "evaluation",
) -> dict[str, Any]:
    """Let a policy write one completion a problem and measure it.

    Args:
        policy: Of options or tokens.
        tokenizer: Its backbone's.
        problems: At least one.
        max_new_tokens: Token limit.
        num_slots: Episodes decoded side by side.
        generator: A CPU generator to sample with; None decodes greedily.
        engine: To decode on, long enough for the prompts and limits; a new one where left out.
        name: Shown beside the progress bar.

    Returns:
        ``accuracy`` with its 95 % bootstrap interval over problems ``low``, ``high``; ``language_switching_rate``,
        ``switches_per_1000_words``; ``degeneracy_rate``, the share of completions with a flag of `ollm_rl.degeneracy`,
        and the rate of each flag, ``loop_rate`` and so on; ``verifier_failures``, the number of checks that broke (not
        correct, but not wrong either); ``completion_tokens``, ``eval_seconds``, ``num_problems``; and ``completions``,
        a row a problem: ``question``, ``answer``, ``completion``, ``correct``, ``status``, ``switched``, ``words``,
        ``switches``, ``flags``.
    """
    context = context_length(policy.backbone)
    prompts = encode_prompts(problems, tokenizer, max_length=context, max_new_tokens=max_new_tokens)
    longest = max(map(len, prompts)) + max_new_tokens
    engine = engine or DecodeEngine(policy.backbone, min(num_slots, len(problems)), longest)
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    lengths: list[int] = []
    together = 2 * num_slots  # so that slots are refilled while the progress bar still moves
    for start in tqdm(range(0, len(problems), together), desc=f"evaluate {name}"):
        part = problems[start : start + together]
        rollout = collect(
            policy,
            engine,
            prompts[start : start + together],
            max_new_tokens=max_new_tokens,
            end_token=int(tokenizer.eos_token_id),
            generator=generator,
        )
        lengths += rollout.completion_mask.sum(1).tolist()
        texts, ended = completion_texts(rollout, tokenizer), rollout.terminated.tolist()
        verdicts = shared_pool().verify_batch(texts, [problem.answer for problem in part])
        rows += [_judge(*case) for case in zip(part, texts, ended, verdicts, strict=True)]
    correct = [row["correct"] for row in rows]
    low, high = bootstrap_interval(correct)
    num_words = sum(row["words"] for row in rows)
    return {
        "accuracy": sum(correct) / len(rows),
        "low": low,
        "high": high,
        "language_switching_rate": sum(row["switched"] for row in rows) / len(rows),
        "switches_per_1000_words": 1000 * sum(row["switches"] for row in rows) / max(1, num_words),
        "degeneracy_rate": sum(bool(row["flags"]) for row in rows) / len(rows),
        **{f"{flag}_rate": sum(flag in row["flags"] for row in rows) / len(rows) for flag in FLAGS},
        "verifier_failures": sum(row["status"] in FAILURES for row in rows),
        "completion_tokens": sum(lengths) / len(rows),
        "eval_seconds": time.perf_counter() - started,
        "num_problems": len(rows),
        "completions": rows,
    }


def _judge(problem: Problem, completion: str, ended: bool, verdict: Verdict) -> dict[str, Any]:
    switching = measure_switching(problem.question, completion)
    return {
        "question": problem.question,
        "answer": problem.answer,
        "completion": completion,
        "correct": verdict.correct,
        "status": verdict.status,
        "switched": switching.switched,
        "words": switching.words,
        "switches": switching.switches,
        "flags": sorted(degeneracy(completion, finished=ended)),
    }
