"""Search at a token budget: best-of-N, beam search and Monte-Carlo tree search over options or tokens.

Every token that is generated counts, the end of text included; prompts and copies of states do not. A choice among the
completions found is called ``oracle`` where the verifier's verdict made it, that is with the reference answer; the
others see what a user would see.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.config import LeafValue, SearchConfig, SearchMethod
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.agents.search.beam import beam_search
from ollm_rl.agents.search.choosing import correct_at, judge_all, result_row, share, shares_at_k
from ollm_rl.agents.search.forest import Forest
from ollm_rl.agents.search.mcts import simulations
from ollm_rl.agents.search.samples import Sample, Tempered, draw_samples
from ollm_rl.agents.search.tree import Node, Search, Tree
from ollm_rl.answers.pool import FAILURES, shared_pool
from ollm_rl.backbones.loading import context_length
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.devices import resolve_device
from ollm_rl.errors import UsageError
from ollm_rl.problems.prompts import encode_prompts
from ollm_rl.problems.sources import Problem, load_problems
from ollm_rl.runs import origin, read_run, write_atomic

TOGETHER = 64  # problems whose samples are drawn in one go
HALVINGS = 5  # the curves begin at the budget over 2 to this power


def run_search(config: SearchConfig) -> dict[str, Any]:
    """``search`` with what ``config`` names; writes and returns its result with its origin.

    Raises:
        UsageError: If a setting, the model or the data does not fit, or a value head is asked for that was not trained.
        MissingError: If a folder holds no model.
    """
    if config.leaf_value == "value_head":
        _check_value_head(config.model)
    problems = load_problems(config.data, split=config.split, limit=config.limit, seed=config.seed)
    device = resolve_device(config.device)
    policy, tokenizer = load_policy(config.model, dtype=getattr(torch, config.dtype), device=device)
    result = search(
        policy,
        tokenizer,
        problems,
        method=config.method,
        budget_tokens=config.budget_tokens,
        seed=config.seed,
        max_new_tokens=config.max_new_tokens,
        leaf_value=config.leaf_value,
        exploration=config.exploration,
        temperature=config.temperature,
        leaves=config.leaves,
        num_slots=config.num_slots,
    )
    result |= {"model": config.model, "data": config.data, "split": config.split, "seed": config.seed, **origin()}
    if config.out is not None:
        write_atomic(config.out, json.dumps(result, indent=1))
    return result


def search(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    method: SearchMethod,
    budget_tokens: int,
    seed: int = 0,
    max_new_tokens: int = 96,
    leaf_value: LeafValue = "likelihood",
    exploration: float = 1.0,
    temperature: float = 1.0,
    leaves: int = 1,
    num_slots: int = 256,
    fork: bool = True,
) -> dict[str, Any]:
    """Search for a completion of every problem with at most ``budget_tokens`` generated tokens each.

    Args:
        policy: Of options or tokens; over tokens a tree offers the most probable ones at every node.
        tokenizer: Its backbone's.
        problems: At least one.
        method: ``best-of-n`` (independent samples), ``beam`` or ``mcts``.
        budget_tokens: For each problem; at least ``max_new_tokens``, so that one completion is sure to fit.
        seed: Of samples; beam and mcts draw nothing.
        max_new_tokens: Token limit of a completion.
        leaf_value: What a leaf of mcts is worth: ``likelihood`` (a rollout's geometric mean probability a decision),
            ``value_head``, or ``verifier`` (whether a rollout is right: the search itself knows the reference answer,
            so that all it can report is an oracle).
        exploration: The constant of PUCT.
        temperature: Of best-of-n.
        leaves: Slots of a tree. More keep an engine busy with few problems, but share a small budget out.
        num_slots: Of the engine.
        fork: Whether branches begin from copied states; if not, their prefixes are run again. For comparison.

    Returns:
        ``accuracy``, by choice the share of problems solved with its 95 % bootstrap interval: ``mean``, ``low``,
        ``high``. The choices: ``oracle``; without the reference answer ``majority`` (of samples, each one vote; of
        the completions of a tree, which are never equal, each by its probability), ``likelihood`` and, with
        ``leaf_value="value_head"``, ``value``. With ``leaf_value="verifier"`` there is ``oracle`` alone.
        ``curves``: the same shares after every one of ``budgets`` tokens. ``pass_at_k``: of best-of-n, by k.
        ``generated_tokens`` and ``recomputed_tokens`` (of prefixes) of all problems together, ``verifier_failures``,
        ``num_problems``; and ``problems``, a row each: ``question``, ``answer``, ``tokens_spent``, ``completion``,
        ``correct`` and ``chosen_by`` (majority, or oracle where it is alone), ``choices`` (``completion`` and
        ``correct`` by choice), ``correct_at`` (by choice, after every one of ``budgets``: false before the first
        completion), and ``completions`` with ``completion``, ``correct``, ``log_prob``, ``tokens_spent``.

    Raises:
        UsageError: If a setting is unknown or does not fit the others, there are no problems, or a prompt is too long.
    """
    if not problems:
        raise UsageError("problems is empty; give at least one")
    _check(method, budget_tokens, max_new_tokens, leaf_value, exploration, temperature, leaves, num_slots)
    prompts = encode_prompts(
        problems, tokenizer, max_length=context_length(policy.backbone), max_new_tokens=max_new_tokens
    )
    end_token = int(tokenizer.eos_token_id)
    length = max(map(len, prompts)) + max_new_tokens
    recomputed = 0
    if method == "best-of-n":
        engine = DecodeEngine(policy.backbone, num_slots, length)
        found, spent = _sample(
            Tempered(policy, temperature), engine, prompts, budget_tokens, max_new_tokens, end_token, seed
        )
    else:
        forest = Forest(
            policy,
            DecodeEngine(policy.backbone, min(num_slots, leaves * len(prompts)), length),
            end_token=end_token,
            max_new_tokens=max_new_tokens,
            leaves=leaves,
            fork=fork,
        )
        trees = [Tree(prompt, budget_tokens) for prompt in prompts]
        forest.grow(trees, _planter(method, trees, problems, tokenizer, leaf_value, exploration, leaves))
        found = [[Sample(node.tokens, node.log_prob, node.value, cost) for node, cost in tree.ends] for tree in trees]
        spent, recomputed = [tree.spent for tree in trees], forest.recomputed
    names = ["oracle"] if method == "mcts" and leaf_value == "verifier" else ["majority", "likelihood", "oracle"]
    names += ["value"] if leaf_value == "value_head" else []
    candidates = judge_all(found, problems, tokenizer, equal_votes=method == "best-of-n")
    budgets = [budget_tokens // 2**halvings for halvings in range(HALVINGS, -1, -1)]
    rows = [result_row(*case, names, budgets) for case in zip(problems, candidates, spent, strict=True)]
    verdicts = [candidate.verdict for row in candidates for candidate in row]
    return {
        "method": method,
        "budget_tokens": budget_tokens,
        "accuracy": {name: share([correct_at(row, name) for row in candidates]) for name in names},
        "budgets": budgets,
        "curves": {name: np.mean([row["correct_at"][name] for row in rows], 0).tolist() for name in names},
        "pass_at_k": shares_at_k(candidates, found, budget_tokens - max_new_tokens) if method == "best-of-n" else {},
        "generated_tokens": sum(spent),
        "recomputed_tokens": recomputed,
        "verifier_failures": sum(verdict.status in FAILURES for verdict in verdicts),
        "num_problems": len(problems),
        "problems": rows,
    }


def _check(
    method: str,
    budget_tokens: int,
    max_new_tokens: int,
    leaf_value: str,
    exploration: float,
    temperature: float,
    leaves: int,
    slots: int,
) -> None:
    for name, value, known in (("method", method, SearchMethod), ("leaf_value", leaf_value, LeafValue)):
        if value not in get_args(known):
            raise UsageError(f"{name}={value!r} is unknown; give one of {', '.join(get_args(known))}")
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if budget_tokens < max_new_tokens:
        raise UsageError(
            f"budget_tokens={budget_tokens} may not pay for one completion of max_new_tokens={max_new_tokens}; raise "
            "the budget or lower the limit"
        )
    if not exploration >= 0:
        raise UsageError(f"exploration={exploration} must be at least 0; 1 is a good start")
    if not temperature > 0:
        raise UsageError(f"temperature={temperature} must be positive; 1 is the policy as it is")
    if leaves < 1 or slots < leaves:
        raise UsageError(
            f"leaves={leaves} must be at least 1 and at most num_slots={slots}; lower it or raise num_slots"
        )


def _sample(
    actor: Tempered,
    engine: DecodeEngine,
    prompts: list[list[int]],
    budget_tokens: int,
    max_new_tokens: int,
    end_token: int,
    seed: int,
) -> tuple[list[list[Sample]], list[int]]:
    """Samples of every prompt and the tokens spent on it, a fixed number of prompts at a time."""
    found: list[list[Sample]] = []
    spent: list[int] = []
    for start in tqdm(range(0, len(prompts), TOGETHER), desc="sample"):
        stream = np.random.SeedSequence([seed, start]).generate_state(1, np.uint64)[0] >> np.uint64(1)
        part, tokens = draw_samples(
            actor,
            engine,
            prompts[start : start + TOGETHER],
            budget_tokens=budget_tokens,
            max_new_tokens=max_new_tokens,
            end_token=end_token,
            generator=torch.Generator().manual_seed(int(stream)),
        )
        found += part
        spent += tokens
    return found, spent


def _planter(
    method: SearchMethod,
    trees: list[Tree],
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    leaf_value: LeafValue,
    exploration: float,
    leaves: int,
) -> Callable[[Tree], list[Search]]:
    """The searches that begin in a tree."""
    if method == "beam":
        return lambda tree: [beam_search(tree)]
    asked = dict(zip(trees, problems, strict=True))

    def judge(tree: Tree, leaf: Node) -> float:
        if leaf_value == "value_head":
            return min(1.0, max(0.0, leaf.value))
        if leaf_value == "likelihood":
            return math.exp(leaf.log_prob / max(1, leaf.decisions))
        text = tokenizer.decode(leaf.tokens, skip_special_tokens=True)
        return float(shared_pool().submit(text, asked[tree].answer).result().correct)

    def plant(tree: Tree) -> list[Search]:
        return [
            simulations(
                tree,
                judge,
                exploration=exploration,
                rollouts=leaf_value != "value_head",
                solved=1.0 if leaf_value == "verifier" else math.inf,
                wait=leaf > 0,
            )
            for leaf in range(leaves)
        ]

    return plant


def format_search(result: dict[str, Any]) -> str:
    """Accuracy by choice and tokens, as a table; texts say which choice knew the reference answer."""
    shown = {name: f"{name} (knows the answer)" if name == "oracle" else name for name in result["curves"]}
    lines = [f"{'tokens a problem':24}" + "".join(f"{budget:>8}" for budget in result["budgets"])]
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


def _check_value_head(model: str) -> None:
    """Refuse a value head that no training has moved."""
    folder = Path(model)
    if not (folder / "run.json").exists() or read_run(folder, "train")["algorithm"] != "ppo":
        raise UsageError(
            f"leaf_value='value_head' needs a value head that was trained, and {model!r} is no PPO run; give the "
            "folder of ollm-rl train --algorithm ppo, or another leaf_value"
        )
