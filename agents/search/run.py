"""Search at a token budget: best-of-N, beam search and Monte-Carlo tree search over options or tokens.

Every token that is generated counts, the end of text included; prompts and copies of states do not. A choice among the
completions found is called ``oracle`` where the verifier's verdict made it, that is with the reference answer; the
others see what a user would see.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.completions import Completion
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.agents.search.beam import beam_search
from ollm_rl.agents.search.choosing import Written, choosers, correct_at, judge, result_row, share
from ollm_rl.agents.search.config import SearchConfig, SearchSettings
from ollm_rl.agents.search.forest import Forest
from ollm_rl.agents.search.mcts import simulations
from ollm_rl.agents.search.samples import Tempered, draw_samples, shares_at_k
from ollm_rl.agents.search.tree import Node, Search, Tree
from ollm_rl.answers.pool import shared_pool
from ollm_rl.backbones.loading import context_length
from ollm_rl.backbones.names import ModelName, resolve
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.turns import Turns
from ollm_rl.devices import resolve_device
from ollm_rl.errors import UsageError
from ollm_rl.problems.prompts import encode_prompts
from ollm_rl.problems.sources import Problem, load_problems
from ollm_rl.runs import origin, write_atomic
from ollm_rl.streams import Purpose, torch_generator

TOGETHER = 64  # problems whose samples are drawn in one go
HALVINGS = 5  # the curves begin at the budget over 2 to this power

Found = tuple[list[list[Completion]], list[int], int]  # completions and tokens spent by problem, tokens recomputed


def run_search(config: SearchConfig) -> dict[str, Any]:
    """``search`` with what ``config`` names; writes and returns its result with its origin.

    Raises:
        UsageError: If a setting, the model or the data does not fit, or a value head is asked for that was not trained.
    """
    model = resolve(config.model)
    if config.leaf_value == "value_head":
        check_value_head(model)
    problems = load_problems(config.data, split=config.split, limit=config.limit, seed=config.seed)
    device = resolve_device(config.device)
    policy, tokenizer = load_policy(model, dtype=getattr(torch, config.dtype), device=device)
    result = search(policy, tokenizer, problems, config)
    result |= {"model": config.model, "data": config.data, "split": config.split, "seed": config.seed, **origin()}
    if config.out is not None:
        write_atomic(config.out, json.dumps(result, indent=1))
    return result


def search(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    settings: SearchSettings,
    *,
    fork: bool = True,
) -> dict[str, Any]:
    """Search for a completion of every problem with at most ``budget_tokens`` generated tokens each.

    Args:
        policy: Of options or tokens; over tokens a tree offers the most probable ones at every node.
        tokenizer: Its backbone's.
        problems: At least one.
        settings: Of the search.
        fork: Whether branches begin from copied states; if not, their prefixes are run again. For comparison.

    Returns:
        What `summarise` returns.

    Raises:
        UsageError: If there are no problems, or a prompt is too long.
    """
    if not problems:
        raise UsageError("problems is empty; give at least one")
    context = context_length(policy.backbone)
    prompts = encode_prompts(problems, tokenizer, max_length=context, max_new_tokens=settings.max_new_tokens)
    if settings.method == "best-of-n":
        found = _sample(policy, tokenizer, problems, prompts, settings)
    else:
        found = _grow(policy, tokenizer, problems, prompts, settings, fork)
    return summarise(*found, settings)


def summarise(
    completions: list[list[Completion]], spent: list[int], recomputed: int, settings: SearchSettings
) -> dict[str, Any]:
    """What a search found.

    Args:
        completions: Of every problem.
        spent: Tokens generated for each.
        recomputed: Tokens of prefixes that were run again, of all problems together.
        settings: Of the search.

    Returns:
        ``accuracy``, by choice the share of problems solved with its 95 % bootstrap interval: ``mean``, ``low``,
        ``high``. The choices: ``oracle``; without the reference answer ``majority``, ``likelihood`` and, with
        ``leaf_value="value_head"``, ``value``. With ``leaf_value="verifier"`` there is only ``oracle``.
        ``curves``: the same shares after every one of ``budgets`` tokens. ``pass_at_k``: of best-of-n, by k.
        ``generated_tokens`` and ``recomputed_tokens`` of all problems together, ``verifier_failures``,
        ``num_problems``; and ``problems``, a row each, as `result_row` makes it (chosen by majority, or by the oracle
        where there is nothing else).
    """
    sampled = settings.method == "best-of-n"
    guided = settings.method == "mcts" and settings.leaf_value == "verifier"
    names = ["oracle"] if guided else ["majority", "likelihood", "oracle"]
    chosen_by = choosers([*names, *(["value"] * (settings.leaf_value == "value_head"))], equal_votes=sampled)
    budgets = [settings.budget_tokens // 2**halvings for halvings in range(HALVINGS, -1, -1)]
    rows = [result_row(*case, chosen_by, budgets) for case in zip(completions, spent, strict=True)]
    latest = settings.budget_tokens - settings.max_new_tokens
    return {
        "method": settings.method,
        "budget_tokens": settings.budget_tokens,
        "accuracy": {
            name: share([correct_at(row, choose) for row in completions]) for name, choose in chosen_by.items()
        },
        "budgets": budgets,
        "curves": {name: np.mean([row["correct_at"][name] for row in rows], 0).tolist() for name in chosen_by},
        "pass_at_k": shares_at_k(completions, latest) if sampled else {},
        "generated_tokens": sum(spent),
        "recomputed_tokens": recomputed,
        "verifier_failures": sum(one.verdict.failed for row in completions for one in row),
        "num_problems": len(completions),
        "problems": rows,
    }


def _sample(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prompts: list[list[int]],
    settings: SearchSettings,
) -> Found:
    """Samples of every prompt, a fixed number of prompts at a time."""
    engine = DecodeEngine(policy.backbone, settings.num_slots, max(map(len, prompts)) + settings.max_new_tokens)
    turns = Turns(engine, Tempered(policy, settings.temperature).act)
    found: list[list[Completion]] = []
    spent: list[int] = []
    for start in tqdm(range(0, len(prompts), TOGETHER), desc="sample"):
        part, tokens = draw_samples(
            turns,
            problems[start : start + TOGETHER],
            prompts[start : start + TOGETHER],
            tokenizer,
            budget_tokens=settings.budget_tokens,
            max_new_tokens=settings.max_new_tokens,
            generator=torch_generator(settings.seed, Purpose.SEARCH, start),
        )
        found += part
        spent += tokens
    return found, spent, 0


def _grow(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prompts: list[list[int]],
    settings: SearchSettings,
    fork: bool,
) -> Found:
    """Trees of every prompt."""
    slots = min(settings.num_slots, settings.leaves * len(prompts))
    forest = Forest(
        policy,
        DecodeEngine(policy.backbone, slots, max(map(len, prompts)) + settings.max_new_tokens),
        end_token=int(tokenizer.eos_token_id),
        max_new_tokens=settings.max_new_tokens,
        leaves=settings.leaves,
        fork=fork,
    )
    trees = [Tree(prompt, settings.budget_tokens) for prompt in prompts]
    forest.grow(trees, _planter(dict(zip(trees, problems, strict=True)), tokenizer, settings))
    found = [
        judge(problem, [Written(node.tokens, node.log_prob, node.value, cost) for node, cost in tree.ends], tokenizer)
        for tree, problem in zip(trees, problems, strict=True)
    ]
    return found, [tree.spent for tree in trees], forest.recomputed


def _planter(
    asked: dict[Tree, Problem], tokenizer: PreTrainedTokenizerBase, settings: SearchSettings
) -> Callable[[Tree], list[Search]]:
    """The searches that begin in a tree."""
    if settings.method == "beam":
        return lambda tree: [beam_search(tree)]

    def value(tree: Tree, leaf: Node) -> float:
        if settings.leaf_value == "value_head":
            return min(1.0, max(0.0, leaf.value))
        if settings.leaf_value == "likelihood":
            return math.exp(leaf.log_prob / max(1, leaf.decisions))
        text = tokenizer.decode(leaf.tokens, skip_special_tokens=True)
        return float(shared_pool().submit(text, asked[tree].answer).result().correct)

    def plant(tree: Tree) -> list[Search]:
        return [
            simulations(
                tree,
                value,
                exploration=settings.exploration,
                rollouts=settings.leaf_value != "value_head",
                solved=1.0 if settings.leaf_value == "verifier" else math.inf,
                wait=leaf > 0,
            )
            for leaf in range(settings.leaves)
        ]

    return plant


def format_search(result: dict[str, Any]) -> str:
    """Accuracy by choice and tokens, as a table; texts say which choice knew the reference answer."""
    shown = {name: f"{name} (knows the answer)" if name == "oracle" else name for name in result["curves"]}
    lines = [f"{'tokens per problem':24}" + "".join(f"{budget:>8}" for budget in result["budgets"])]
    for name, curve in result["curves"].items():
        lines.append(f"{shown[name]:24}" + "".join(f"{share:8.3f}" for share in curve))
    if result["pass_at_k"]:
        lines.append(", ".join(f"pass@{k} {share:.3f}" for k, share in result["pass_at_k"].items()))
    ends = [
        f"{shown[name]} {s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for name, s in result["accuracy"].items()
    ]
    lines.append(
        f"{result['method']} on {result['num_problems']} problems: {', '.join(ends)}; {result['generated_tokens']} "
        f"tokens generated, {result['recomputed_tokens']} of prefixes run again"
    )
    return "\n".join(lines)


def check_value_head(model: ModelName) -> None:
    """Refuse a value head that no training has moved.

    Raises:
        UsageError: If the model is no PPO run.
    """
    if model.kind != "run" or model.description["algorithm"] != "ppo":
        raise UsageError(
            f"leaf_value='value_head' needs a value head that was trained, and {model.name!r} is no PPO run; give the "
            "folder of ollm-rl train --algorithm ppo, or another leaf_value"
        )
