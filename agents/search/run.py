"""Search with a token budget: best-of-N, beam search and Monte-Carlo tree search over options or tokens.

Every generated token counts, the end of text included; prompts and copies of states do not. The choice ``oracle`` uses
the verifier's verdict, that is, the reference answer. The other choices use only what a user would see.
"""

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
from ollm_rl.agents.policies.sampling import Tempered
from ollm_rl.agents.search.beam import beam_search
from ollm_rl.agents.search.choosing import Unverified, choosers, correct_at, result_row, share, verify_completions
from ollm_rl.agents.search.config import SearchConfig, SearchSettings
from ollm_rl.agents.search.forest import Forest
from ollm_rl.agents.search.mcts import simulations
from ollm_rl.agents.search.samples import draw_samples, shares_at_k
from ollm_rl.agents.search.tree import Node, Search, Tree
from ollm_rl.answers.pool import shared_pool
from ollm_rl.backbones.loading import context_length
from ollm_rl.backbones.names import ModelName, resolve
from ollm_rl.backbones.vocabulary import end_tokens
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.memory import check_capacity
from ollm_rl.decode.turns import Turns
from ollm_rl.devices import resolve_device
from ollm_rl.errors import UsageError
from ollm_rl.files.records import sealed_json
from ollm_rl.problems.problem import Problem, listed
from ollm_rl.problems.prompts import encode_prompts, format_prompts
from ollm_rl.problems.sources import load_problems
from ollm_rl.report.ending import ending, problems_of
from ollm_rl.runs import origin, write_atomic
from ollm_rl.safekeeping.outputs import output_file
from ollm_rl.settings import expect
from ollm_rl.streams import Purpose, torch_generator

PROBLEMS_PER_BATCH = 64  # problems whose samples are drawn together
HALVINGS = 5  # the curves begin at the budget / 2**HALVINGS

Outcome = tuple[list[list[Completion]], list[int], int]  # completions and tokens spent by problem, tokens recomputed


def run_search(config: SearchConfig) -> dict[str, Any]:
    """Run ``search`` with the model and problems of ``config``; writes and returns the result with its origin.

    Raises:
        UsageError: If a setting, the model or the data does not fit, or the value head to use was not trained,
            or ``out`` cannot be written.
    """
    expect(config, SearchConfig)
    model = resolve(config.model)
    if config.leaf_value == "value_head":
        check_value_head(model)
    problems = load_problems(
        config.data, split=config.split, columns=config.columns, limit=config.limit, seed=config.seed
    )
    device = resolve_device(config.device)
    with output_file(config.out):
        policy, tokenizer = load_policy(model, dtype=getattr(torch, config.dtype), device=device)
        format_prompts(tokenizer, config)
        result = search(policy, tokenizer, problems, config)
        result |= {"model": config.model, "data": config.data, "split": config.split, "seed": config.seed, **origin()}
        if config.out is not None:
            write_atomic(config.out, sealed_json(result))
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
        policy: Policy over options or tokens; over tokens a tree offers the most probable ones at every node.
        tokenizer: Tokenizer of its backbone.
        problems: At least one.
        settings: Settings of the search.
        fork: Whether branches begin from copied states; if not, their prefixes are run again (for comparison).

    Returns:
        What `summarise` returns.

    Raises:
        UsageError: If there are no problems, or a prompt is too long.
    """
    expect(settings, SearchSettings)
    problems = listed(problems)
    context = context_length(policy.backbone)
    prompts = encode_prompts(problems, tokenizer, max_length=context, max_new_tokens=settings.max_new_tokens)
    if settings.method == "best-of-n":
        outcome = _sample(policy, tokenizer, problems, prompts, settings)
    else:
        outcome = _grow(policy, tokenizer, problems, prompts, settings, fork)
    return summarise(*outcome, settings)


def summarise(
    completions: list[list[Completion]], spent: list[int], recomputed: int, settings: SearchSettings
) -> dict[str, Any]:
    """Summarise the result of a search.

    Args:
        completions: Completions of every problem.
        spent: Tokens generated for each problem.
        recomputed: Prefix tokens that were run again, over all problems.
        settings: Settings of the search.

    Returns:
        ``accuracy``: for each choice the share of problems solved with its 95 % bootstrap interval, as ``mean``,
        ``low`` and ``high``. The choices are ``oracle`` and, without the reference answer, ``majority``,
        ``likelihood`` and, with ``leaf_value="value_head"``, ``value``. With ``leaf_value="verifier"`` there is only
        ``oracle``. ``curves``: the same shares after each of ``budgets`` tokens. ``pass_at_k``: by k, for best-of-n.
        ``generated_tokens`` and ``recomputed_tokens`` over all problems, ``verifier_failures``, ``num_problems``.
        ``problems``: one row per problem from `result_row`, chosen by majority, or by the oracle if it is the only
        choice.
    """
    sampled = settings.method == "best-of-n"
    guided = settings.method == "mcts" and settings.leaf_value == "verifier"
    names = ["oracle"] if guided else ["majority", "likelihood", "oracle"]
    choosers_by_name = choosers([*names, *(["value"] * (settings.leaf_value == "value_head"))], equal_votes=sampled)
    budgets = [settings.budget_tokens // 2**halvings for halvings in range(HALVINGS, -1, -1)]
    rows = [result_row(*pair, choosers_by_name, budgets) for pair in zip(completions, spent, strict=True)]
    latest = settings.budget_tokens - settings.max_new_tokens
    return {
        "method": settings.method,
        "budget_tokens": settings.budget_tokens,
        "accuracy": {
            name: share([correct_at(part, choose) for part in completions]) for name, choose in choosers_by_name.items()
        },
        "budgets": budgets,
        "curves": {name: np.mean([row["correct_at"][name] for row in rows], 0).tolist() for name in choosers_by_name},
        "pass_at_k": shares_at_k(completions, latest) if sampled else {},
        "generated_tokens": sum(spent),
        "recomputed_tokens": recomputed,
        "verifier_failures": sum(completion.verdict.failed for part in completions for completion in part),
        "num_problems": len(completions),
        "problems": rows,
    }


def _sample(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prompts: list[list[int]],
    settings: SearchSettings,
) -> Outcome:
    """Samples of every prompt, ``PROBLEMS_PER_BATCH`` prompts at a time."""
    engine = DecodeEngine(policy.backbone, settings.num_slots, max(map(len, prompts)) + settings.max_new_tokens)
    turns = Turns(engine, Tempered(policy, settings.temperature).act)
    completions: list[list[Completion]] = []
    spent: list[int] = []
    for start in tqdm(range(0, len(prompts), PROBLEMS_PER_BATCH), desc="sample"):
        part, tokens = draw_samples(
            turns,
            problems[start : start + PROBLEMS_PER_BATCH],
            prompts[start : start + PROBLEMS_PER_BATCH],
            tokenizer,
            budget_tokens=settings.budget_tokens,
            max_new_tokens=settings.max_new_tokens,
            generator=torch_generator(settings.seed, Purpose.SEARCH, start),
        )
        completions += part
        spent += tokens
    return completions, spent, 0


def _grow(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prompts: list[list[int]],
    settings: SearchSettings,
    fork: bool,
) -> Outcome:
    """Tree search for every prompt."""
    ends = end_tokens(policy.backbone, tokenizer)
    slots = min(settings.num_slots, settings.leaves * len(prompts))
    engine = DecodeEngine(policy.backbone, slots, max(map(len, prompts)) + settings.max_new_tokens)
    tree_bytes = settings.budget_tokens * engine.token_bytes
    held = f"{engine.max_length} tokens, and budget_tokens={settings.budget_tokens} of each tree,"
    check_capacity(slots, engine.slot_bytes + tree_bytes // settings.leaves, held, engine.device)
    forest = Forest(
        policy,
        engine,
        end_tokens=ends,
        max_new_tokens=settings.max_new_tokens,
        leaves=settings.leaves,
        fork=fork,
    )
    trees = [Tree(prompt, settings.budget_tokens) for prompt in prompts]
    forest.grow(trees, _search_factory(dict(zip(trees, problems, strict=True)), tokenizer, settings))
    completions = [
        verify_completions(
            problem,
            [Unverified(node.tokens, node.log_prob, node.value, tokens_spent) for node, tokens_spent in tree.ends],
            tokenizer,
            ends,
        )
        for tree, problem in zip(trees, problems, strict=True)
    ]
    return completions, [tree.spent for tree in trees], forest.recomputed


def _search_factory(
    problem_of: dict[Tree, Problem], tokenizer: PreTrainedTokenizerBase, settings: SearchSettings
) -> Callable[[Tree], list[Search]]:
    """A function that creates the searches of a tree."""
    if settings.method == "beam":
        return lambda tree: [beam_search(tree)]

    def leaf_value(tree: Tree, leaf: Node) -> float:
        if settings.leaf_value == "value_head":
            return min(1.0, max(0.0, leaf.value))
        if settings.leaf_value == "likelihood":
            return math.exp(leaf.log_prob / max(1, leaf.decisions))
        text = tokenizer.decode(leaf.tokens, skip_special_tokens=True)
        return float(shared_pool().submit(text, problem_of[tree].answer).result().correct)

    def create_searches(tree: Tree) -> list[Search]:
        return [
            simulations(
                tree,
                leaf_value,
                exploration=settings.exploration,
                rollouts=settings.leaf_value != "value_head",
                solved=1.0 if settings.leaf_value == "verifier" else math.inf,
                wait=number > 0,
            )
            for number in range(settings.leaves)
        ]

    return create_searches


def format_search(result: dict[str, Any]) -> str:
    """Table of accuracy by choice and tokens; the text says which choice knew the reference answer."""
    labels = {name: f"{name} (knows the answer)" if name == "oracle" else name for name in result["curves"]}
    lines = [f"{'tokens per problem':26}" + "".join(f"{budget:>8}" for budget in result["budgets"])]
    for name, curve in result["curves"].items():
        lines.append(f"{labels[name]:26}" + "".join(f"{share:8.3f}" for share in curve))
    if result["pass_at_k"]:
        lines.append(", ".join(f"pass@{k} {share:.3f}" for k, share in result["pass_at_k"].items()))
    accuracies = [
        f"{labels[name]} {s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for name, s in result["accuracy"].items()
    ]
    lines.append(
        f"{result['method']} on {result['num_problems']} problems: {', '.join(accuracies)}; "
        f"{result['generated_tokens']} tokens generated, {result['recomputed_tokens']} of prefixes run again"
    )
    return "\n".join(lines)


def search_ending(result: dict[str, Any], config: SearchConfig) -> str:
    """Accuracy, where the result lies, and the command that comes next.

    Only of the choices that do not know the answer, unless the oracle is the only one.
    """
    accuracies = result["accuracy"]
    names = [name for name in accuracies if name != "oracle"] or ["oracle"]
    return ending(
        "accuracy: " + ", ".join(f"by {name} {accuracies[name]['mean']:.1%}" for name in names),
        config.out,
        ["ollm-rl", "eval", "--model", config.model, *problems_of(config.data)],
    )


def check_value_head(model: ModelName) -> None:
    """Refuse an untrained value head.

    Raises:
        UsageError: If the model is no PPO run.
    """
    if model.kind != "run" or model.description.get("algorithm") != "ppo":
        raise UsageError(
            f"leaf_value='value_head' needs a value head that was trained, and {model.name!r} is no PPO run; give the "
            "folder of ollm-rl train --algorithm ppo, or another leaf_value"
        )
