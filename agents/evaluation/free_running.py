"""Free-running evaluation of policies: accuracy with an interval, language switching, degeneracy."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.completions import completion_texts
from ollm_rl.agents.config import EvalConfig
from ollm_rl.agents.evaluation.results import ResultFile, Row, hash_problems, hash_weights, write_summary
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.answers.pool import FAILURES, Verdict, shared_pool
from ollm_rl.backbones.loading import context_length
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import collect
from ollm_rl.devices import resolve_device
from ollm_rl.metrics.degenerate import FLAGS, degeneracy
from ollm_rl.metrics.language import measure_switching
from ollm_rl.metrics.statistics import bootstrap_interval
from ollm_rl.problems.prompts import encode_prompts
from ollm_rl.problems.sources import Problem, load_problems
from ollm_rl.runs import origin


def run_eval(config: EvalConfig) -> list[dict[str, Any]]:
    """Evaluate every model on every problem set.

    With ``out`` each result is a file of that folder, and what is there already is not done again; ``results.json`` and
    ``results.md`` list all results of the folder.

    Returns:
        A result of ``evaluate`` for each pair, model by model, with ``model``, ``data``, their settings and origin.

    Raises:
        ValueError: If a setting, a model or the data do not fit, or ``out`` holds other results of the same names.
        FileNotFoundError: If a folder holds no model.
    """
    device = resolve_device(config.device)
    problems = {
        data: load_problems(data, split=config.split, limit=config.limit, seed=config.seed) for data in config.data
    }
    weights = {model: hash_weights(model) for model in config.model}
    files = {
        (model, data): ResultFile(config, model, data, {"weights": weights[model], "problems": hash_problems(part)})
        for model in config.model
        for data, part in problems.items()
    }
    results = {pair: file.read() for pair, file in files.items()}
    for model in config.model:
        missing = [pair for pair, result in results.items() if pair[0] == model and result is None]
        loaded = load_policy(model, dtype=getattr(torch, config.dtype), device=device) if missing else None
        for pair in missing:
            assert loaded is not None
            rows, seconds = files[pair].begun()
            result = evaluate(
                *loaded,
                problems[pair[1]],
                max_new_tokens=config.max_new_tokens,
                num_slots=config.num_slots,
                generator=torch.Generator().manual_seed(config.seed) if config.sample else None,
                name=" on ".join(pair),
                rows=rows,
                seconds=seconds,
                on_part=files[pair].keep,
            )
            results[pair] = files[pair].finish({**result, **origin()})
    if config.out is not None:
        write_summary(config.out)
    return [result for result in results.values() if result is not None]


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
    rows: Sequence[Row] = (),
    seconds: float = 0.0,
    on_part: Callable[[list[Row], float], None] | None = None,
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
        rows: Of the first problems, where an earlier call was interrupted; they are not done again.
        seconds: What these took.
        on_part: Called with all rows and seconds so far, after each part of the problems.

    Returns:
        ``accuracy`` with its 95 % bootstrap interval over problems ``low``, ``high``; ``language_switching_rate``,
        ``switches_per_1000_words``; ``degeneracy_rate``, the share of completions with a flag of `degeneracy`,
        and the rate of each flag, ``loop_rate`` and so on; ``verifier_failures``, the number of checks that broke (not
        correct, but not wrong either); ``completion_tokens``, ``eval_seconds``, ``num_problems``; and ``completions``,
        a row a problem: ``question``, ``answer``, ``completion``, ``tokens``, ``correct``, ``status``, ``switched``,
        ``words``, ``switches``, ``flags``.
    """
    context = context_length(policy.backbone)
    prompts = encode_prompts(problems, tokenizer, max_length=context, max_new_tokens=max_new_tokens)
    longest = max(map(len, prompts)) + max_new_tokens
    engine = engine or DecodeEngine(policy.backbone, min(num_slots, len(problems)), longest)
    rows = list(rows)
    if generator is not None and rows:
        torch.rand(len(rows), max_new_tokens, generator=generator)  # what their samples took
    started = time.perf_counter() - seconds  # as if it had never been interrupted
    together = 2 * num_slots  # so that slots are refilled, and a kill loses no more than this
    with tqdm(total=len(problems), initial=len(rows), desc=f"evaluate {name}") as bar:

        def advance(episodes: list[int], tokens: list[list[int]]) -> None:
            bar.update(len(episodes))

        for start in range(len(rows), len(problems), together):
            part = problems[start : start + together]
            rollout = collect(
                policy,
                engine,
                prompts[start : start + together],
                max_new_tokens=max_new_tokens,
                end_token=int(tokenizer.eos_token_id),
                generator=generator,
                on_end=advance,
            )
            lengths = rollout.completion_mask.sum(1).tolist()
            texts, ended = completion_texts(rollout, tokenizer), rollout.terminated.tolist()
            verdicts = shared_pool().verify_batch(texts, [problem.answer for problem in part])
            rows += [_judge(*case) for case in zip(part, texts, lengths, ended, verdicts, strict=True)]
            if on_part is not None:
                on_part(rows, time.perf_counter() - started)
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
        "completion_tokens": sum(row["tokens"] for row in rows) / len(rows),
        "eval_seconds": time.perf_counter() - started,
        "num_problems": len(rows),
        "completions": rows,
    }


def _judge(problem: Problem, completion: str, tokens: int, ended: bool, verdict: Verdict) -> Row:
    switching = measure_switching(problem.question, completion)
    return {
        "question": problem.question,
        "answer": problem.answer,
        "completion": completion,
        "tokens": tokens,
        "correct": verdict.correct,
        "status": verdict.status,
        "switched": switching.switched,
        "words": switching.words,
        "switches": switching.switches,
        "flags": sorted(degeneracy(completion, finished=ended)),
    }
