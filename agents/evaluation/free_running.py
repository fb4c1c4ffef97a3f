"""Free-running evaluation of policies: accuracy with an interval, language switching, degeneracy."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.completions import Checks, Completion, Row, rates
from ollm_rl.agents.evaluation.config import EvalConfig
from ollm_rl.agents.evaluation.results import ResultFile, hash_problems, hash_weights, write_summary
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.answers.pool import shared_pool
from ollm_rl.backbones.loading import context_length
from ollm_rl.backbones.names import resolve
from ollm_rl.backbones.vocabulary import end_tokens
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import collect
from ollm_rl.decode.turns import Turns
from ollm_rl.devices import resolve_device
from ollm_rl.errors import UsageError
from ollm_rl.metrics.statistics import bootstrap_interval
from ollm_rl.problems.prompts import encode_prompts, format_prompts
from ollm_rl.problems.sources import Problem, load_problems
from ollm_rl.runs import origin
from ollm_rl.safekeeping.outputs import output_folder
from ollm_rl.settings import Count, checked
from ollm_rl.streams import Purpose, torch_generator

OnPart = Callable[[list[Completion], float], None]  # gets all completions and seconds so far


def run_eval(config: EvalConfig) -> list[dict[str, Any]]:
    """Evaluate every model on every problem set.

    With ``out`` each result is a file of that folder, and pairs already evaluated are skipped; ``results.json`` and
    ``results.md`` list all results of the folder.

    Returns:
        A result of ``evaluate`` for each pair, model by model, with ``model``, ``data``, their settings and origin.

    Raises:
        UsageError: If a setting, a model or the data do not fit, or ``out`` cannot be written, is in use by another
            evaluation, or holds other results of the same names.
    """
    device = resolve_device(config.device)
    problems = {
        data: load_problems(data, split=config.split, columns=config.columns, limit=config.limit, seed=config.seed)
        for data in config.data
    }
    models = {name: resolve(name) for name in config.model}
    files = {
        (name, data): ResultFile(config, name, data, {"weights": weights, "problems": hash_problems(part)})
        for name, weights in {name: hash_weights(model) for name, model in models.items()}.items()
        for data, part in problems.items()
    }
    with output_folder(config.out, "an evaluation"):
        results = {pair: file.read() for pair, file in files.items()}
        for name, model in models.items():
            missing = [pair for pair, result in results.items() if pair[0] == name and result is None]
            loaded = load_policy(model, dtype=getattr(torch, config.dtype), device=device) if missing else None
            for pair in missing:
                assert loaded is not None
                format_prompts(loaded[1], config)
                result = _evaluated(config, files[pair], *loaded, problems[pair[1]])
                results[pair] = files[pair].finish({**result, **origin()})
        if config.out is not None:
            write_summary(config.out)
    return [result for result in results.values() if result is not None]


def _evaluated(
    config: EvalConfig,
    file: ResultFile,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
) -> dict[str, Any]:
    """The result of one pair, from where an interrupted evaluation of it stopped."""
    rows, seconds = file.begun()
    return evaluate(
        policy,
        tokenizer,
        problems,
        max_new_tokens=config.max_new_tokens,
        num_slots=config.num_slots,
        generator=torch_generator(config.seed, Purpose.EVALUATION) if config.sample else None,
        name=f"{file.settings['model']} on {file.settings['data']}",
        done=[Completion.from_row(*pair) for pair in zip(rows, problems, strict=False)],
        seconds=seconds,
        on_part=lambda completions, seconds: file.keep([one.row() for one in completions], seconds),
    )


def evaluate(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    max_new_tokens: int,
    num_slots: int,
    generator: torch.Generator | None = None,
    turns: Turns | None = None,
    name: str = "evaluation",
    done: Sequence[Completion] = (),
    seconds: float = 0.0,
    on_part: OnPart | None = None,
) -> dict[str, Any]:
    """Let a policy write one completion per problem and measure it.

    Args:
        policy: Policy over options or tokens.
        tokenizer: Tokenizer of its backbone.
        problems: At least one.
        max_new_tokens: Token limit.
        num_slots: Episodes decoded in parallel.
        generator: A CPU generator to sample with; None decodes greedily.
        turns: Turns of the policy on an engine whose slots fit the prompts and limits; created if left out.
        name: Shown beside the progress bar.
        done: Completions of the first problems, where an earlier call was interrupted.
        seconds: Seconds that these took.
        on_part: Called after each part of the problems.

    Returns:
        What `measured` returns, and ``eval_seconds``.
    """
    _check(problems, max_new_tokens, num_slots)
    prompts = encode_prompts(
        problems, tokenizer, max_length=context_length(policy.backbone), max_new_tokens=max_new_tokens
    )
    if turns is None:
        longest = max(map(len, prompts)) + max_new_tokens
        turns = Turns(DecodeEngine(policy.backbone, min(num_slots, len(problems)), longest), policy.act)
    completions = list(done)
    if generator is not None and done:
        torch.rand(len(done), max_new_tokens, generator=generator)  # skip the numbers that sampled them
    started = time.perf_counter() - seconds  # as if it had never been interrupted
    parts = _write(turns, tokenizer, problems, prompts, len(done), 2 * num_slots, max_new_tokens, generator, name)
    for part in parts:
        completions += part
        if on_part is not None:
            on_part(completions, time.perf_counter() - started)
    return {**measured(completions), "eval_seconds": time.perf_counter() - started}


def _check(problems: Sequence[Problem], max_new_tokens: int, num_slots: int) -> None:
    """Refuse an evaluation of nothing, and numbers out of range."""
    checked("max_new_tokens", max_new_tokens, Count)
    checked("num_slots", num_slots, Count)
    if not problems:
        raise UsageError("problems is empty; give at least one problem")


def _write(
    turns: Turns,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prompts: Sequence[list[int]],
    first: int,
    together: int,
    max_new_tokens: int,
    generator: torch.Generator | None,
    name: str,
) -> Iterator[list[Completion]]:
    """Completions of the problems from ``first`` on, ``together`` at a time, so that slots are refilled."""
    ends = end_tokens(turns.engine.backbone, tokenizer)
    with tqdm(total=len(problems), initial=first, desc=f"evaluate {name}") as bar:
        for start in range(first, len(problems), together):
            checks = Checks(problems[start : start + together], tokenizer, ends, shared_pool())

            def on_end(episodes: list[int], tokens: list[list[int]], checks: Checks = checks) -> None:
                bar.update(len(episodes))
                checks.begin(episodes, tokens)

            collect(
                turns,
                prompts[start : start + together],
                max_new_tokens=max_new_tokens,
                end_tokens=ends,
                generator=generator,
                on_end=on_end,
            )
            yield checks.finish()


def measured(completions: Sequence[Completion]) -> dict[str, Any]:
    """What an evaluation measures of completions, at least one.

    Returns:
        ``accuracy`` with its 95 % bootstrap interval over problems ``low``, ``high``; what `rates` returns;
        ``num_problems``; and ``completions``, their rows.
    """
    correct = [one.verdict.correct for one in completions]
    low, high = bootstrap_interval(correct)
    rows: list[Row] = [one.row() for one in completions]
    return {
        "accuracy": sum(correct) / len(correct),
        "low": low,
        "high": high,
        **rates(completions),
        "num_problems": len(rows),
        "completions": rows,
    }
