"""The option explorer: the options at every token of a completion, and where another choice leads.

The policy writes the completion greedily. At a live position, where options lead to different tokens, the slot is
saved. The alternatives continue from there in parallel, so that no prefix is computed twice.

Letters: N completions, T tokens, H hidden, K options.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.policies.anchored import AnchoredPolicy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.answers.pool import shared_pool
from ollm_rl.backbones.loading import context_length
from ollm_rl.backbones.vocabulary import end_tokens
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import collect
from ollm_rl.decode.row_cache import Snapshot
from ollm_rl.decode.turns import Turns
from ollm_rl.options.decisions import same_token
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.prompts import encode_prompts

MAX_LIVE = 24  # the first live positions of a completion, whose alternatives are continued
CONTINUATION = 64  # maximum tokens of an alternative
NUM_SLOTS = 32  # alternatives, or completions of a map, decoded in parallel
ExploredPolicy = OptionPolicy | AnchoredPolicy
CONTEXT = 8  # preceding tokens that the text of a token may depend on


class Trace(NamedTuple):
    """A greedy completion.

    Attributes:
        tokens: T tokens, the end-of-text token included.
        hidden: The h_t that chose each token, (T, H).
        option_tokens: Token of every option, (T, K).
        saved: Snapshot of the slot before a token, by position of the token.
    """

    tokens: list[int]
    hidden: torch.Tensor
    option_tokens: torch.Tensor
    saved: dict[int, Snapshot]


@torch.no_grad()
def explore(
    policy: ExploredPolicy, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], *, max_new_tokens: int
) -> list[dict[str, Any]]:
    """Write a completion for every problem and look at its options.

    Args:
        policy: Policy over options.
        tokenizer: Tokenizer of its backbone.
        problems: Problems with an empty ``answer`` are not checked.
        max_new_tokens: Token limit.

    Returns:
        For each problem ``question``, ``answer``, ``correct`` (None if unchecked), and ``positions``, one per token.
        A position has the ``text`` of the token, the policy's ``entropy`` over tokens in nats, and ``choices``, the
        distinct tokens of the options, most probable first. A choice has its ``text`` and whether it was ``written``.
        Its ``options`` are those that lead to it, as [number, pi(z | h), q(z | h, x) for the written x]; ``policy`` is
        their sum of pi. An alternative at one of the first MAX_LIVE live positions also has ``then``, the policy's
        text after it, whether that ``ended``, and whether the answer is ``correct``.

    Raises:
        ValueError: If a prompt does not fit.
    """
    prompts = _prompts(policy, tokenizer, problems, max_new_tokens)
    engine = DecodeEngine(policy.backbone, NUM_SLOTS, max(map(len, prompts)) + max_new_tokens)
    ends = end_tokens(policy.backbone, tokenizer)
    explored = []
    for problem, prompt in zip(problems, prompts, strict=True):
        trace = write_greedily(policy, engine, prompt, max_new_tokens=max_new_tokens, end_tokens=ends)
        branches = [
            (position, token)
            for position in trace.saved
            for token in dict.fromkeys(trace.option_tokens[position].tolist())
            if token != trace.tokens[position]
        ]
        written = []
        for start in range(0, len(branches), NUM_SLOTS):
            part = branches[start : start + NUM_SLOTS]
            limits = [min(CONTINUATION, max_new_tokens - position) for position, _ in part]
            starts = [(trace.saved[position], token) for position, token in part]
            written += continue_greedily(policy, engine, starts, limits=limits, end_tokens=ends)
        alternatives = dict(zip(branches, written, strict=True))
        explored.append(_describe(policy, tokenizer, problem, trace, alternatives))
    return explored


@torch.no_grad()
def option_maps(
    policy: ExploredPolicy, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], *, max_new_tokens: int
) -> dict[str, list[list[float]]]:
    """Usage and entropy along greedy completions.

    Returns:
        ``usage``: mean of pi(z | h) over the completions that are live at a position, (K, T), NaN where none is.
        ``entropy``: the policy's entropy over tokens in nats, one row per completion, of the completion's length.
    """
    prompts = _prompts(policy, tokenizer, problems, max_new_tokens)
    engine = DecodeEngine(policy.backbone, min(NUM_SLOTS, len(prompts)), max(map(len, prompts)) + max_new_tokens)
    ends = end_tokens(policy.backbone, tokenizer)
    rollout = collect(Turns(engine, policy.act), prompts, max_new_tokens=max_new_tokens, end_tokens=ends)
    probs, entropies = _policy_at(policy, rollout.stored["hidden_states"], rollout.stored["option_tokens"])
    live = rollout.decisions
    usage = (probs * live[..., None]).sum(0) / live.sum(0)[:, None]
    lengths = rollout.completion_mask.sum(1).tolist()
    return {
        "usage": usage.T.tolist(),
        "entropy": [row[:length].tolist() for row, length in zip(entropies, lengths, strict=True)],
    }


def write_greedily(
    policy: ExploredPolicy, engine: DecodeEngine, prompt: list[int], *, max_new_tokens: int, end_tokens: Sequence[int]
) -> Trace:
    """Write one completion and save the slot at its first MAX_LIVE live positions."""
    engine.restart(1)
    hidden = engine.prefill([0], [prompt])
    tokens: list[int] = []
    states, options = [], []
    saved: dict[int, Snapshot] = {}
    while True:
        action = policy.act(hidden, None)
        states.append(hidden)
        options.append(action.stored["option_tokens"])
        if action.decisions and len(saved) < MAX_LIVE:
            saved[len(tokens)] = engine.snapshot([0])
        tokens.append(int(action.tokens))
        if tokens[-1] in end_tokens or len(tokens) == max_new_tokens:
            return Trace(tokens, torch.cat(states), torch.cat(options), saved)
        hidden = engine.step(action.tokens)


def continue_greedily(
    policy: ExploredPolicy,
    engine: DecodeEngine,
    starts: Sequence[tuple[Snapshot, int]],
    *,
    limits: Sequence[int],
    end_tokens: Sequence[int],
) -> list[list[int]]:
    """Take a token at each saved slot, continue greedily, and return the tokens written, that token first.

    Args:
        policy: Chooses the tokens.
        engine: Decode engine with at least as many slots.
        starts: Saved slots, of one row each, and the tokens to take.
        limits: Maximum tokens of each.
        end_tokens: Each ends a text and is part of it.
    """
    engine.restart(len(starts))
    engine.begin(range(len(starts)), [(snapshot, 0) for snapshot, _ in starts])
    written = [[token] for _, token in starts]
    while True:
        for slot, (row, limit) in enumerate(zip(written, limits, strict=True)):
            if row[-1] in end_tokens or len(row) == limit:
                engine.release(slot)
        if not any(engine.lengths):
            return written
        hidden = engine.step(torch.tensor([row[-1] for row in written], device=engine.device))
        chosen = policy.act(hidden, None).tokens.tolist()
        for row, token, length in zip(written, chosen, engine.lengths, strict=True):
            if length:
                row.append(token)


def _prompts(
    policy: ExploredPolicy, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], max_new_tokens: int
) -> list[list[int]]:
    context = context_length(policy.backbone)
    return encode_prompts(problems, tokenizer, max_length=context, max_new_tokens=max_new_tokens)


def _policy_at(
    policy: ExploredPolicy, hidden: torch.Tensor, option_tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of the options, (..., K), and the entropy over tokens, (...), from (..., H) and (..., K)."""
    probs = policy.option_probs(hidden, option_tokens)
    by_token = (same_token(option_tokens).float() @ probs[..., None])[..., 0]
    # Where all options agree, rounding could make the entropy negative.
    return probs, (probs * -by_token.log()).nan_to_num(0.0).sum(-1).clamp(min=0.0)


def _describe(
    policy: ExploredPolicy,
    tokenizer: PreTrainedTokenizerBase,
    problem: Problem,
    trace: Trace,
    alternatives: dict[tuple[int, int], list[int]],
) -> dict[str, Any]:
    """What ``explore`` returns for one problem."""
    model, tokens = policy.model, trace.tokens
    probs, entropies = _policy_at(policy, trace.hidden, trace.option_tokens)
    embedded = model.backbone.get_input_embeddings()(torch.tensor(tokens, device=trace.hidden.device))
    encoder = model.adapter.encode(trace.hidden, embedded).softmax(-1)
    ends = end_tokens(model.backbone, tokenizer)
    branches = {pair: tokens[: pair[0]] + row for pair, row in alternatives.items()}
    checked = _check(tokenizer, problem, [tokens, *(row for row in branches.values() if row[-1] in ends)])
    positions = []
    for position, token in enumerate(tokens):
        choices = []
        for choice in dict.fromkeys(trace.option_tokens[position].tolist()):
            numbers = (trace.option_tokens[position] == choice).nonzero()[:, 0].tolist()
            options = [[z, round(float(probs[position, z]), 4), round(float(encoder[position, z]), 4)] for z in numbers]
            described: dict[str, Any] = {
                "text": _text(tokenizer, tokens[:position], [choice]),
                "written": choice == token,
                "policy": round(float(probs[position, numbers].sum()), 4),
                "options": options,
            }
            if (branch := branches.get((position, choice))) is not None:
                described["then"] = _text(tokenizer, branch[: position + 1], branch[position + 1 :])
                described["ended"] = branch[-1] in ends
                described["correct"] = checked.get(tuple(branch))
            choices.append(described)
        positions.append(
            {
                "text": _text(tokenizer, tokens[:position], [token]),
                "entropy": round(float(entropies[position]), 4),
                "choices": sorted(choices, key=lambda choice: -choice["policy"]),
            }
        )
    return {
        "question": problem.question,
        "answer": problem.answer,
        "correct": checked.get(tuple(tokens)),
        "positions": positions,
    }


def _check(
    tokenizer: PreTrainedTokenizerBase, problem: Problem, completions: Sequence[list[int]]
) -> dict[tuple[int, ...], bool]:
    """Whether each completion's answer is right; empty where no answer is known."""
    if not problem.answer:
        return {}
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    verdicts = shared_pool().verify_batch(texts, [problem.answer] * len(texts))
    return {tuple(row): verdict.correct for row, verdict in zip(completions, verdicts, strict=True)}


def _text(tokenizer: PreTrainedTokenizerBase, before: list[int], tokens: list[int]) -> str:
    """The text of tokens that follow others: some tokenizers drop the space of a first word."""
    context = tokenizer.decode(before[-CONTEXT:])
    whole = tokenizer.decode(before[-CONTEXT:] + tokens)
    return whole[len(context) :] if whole.startswith(context) else tokenizer.decode(tokens)
