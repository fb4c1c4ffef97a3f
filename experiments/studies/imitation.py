"""What policies on frozen hidden states can represent: they imitate the right completions of another policy.

python -m ollm_rl.experiments.studies.imitation --teacher RUN --options OPTIONS --train SOURCE --test SOURCE --out OUT

Samples completions of the teacher (usually a vocabulary run) on the training problems, and trains each student by
cross-entropy on the right ones, with the backbone frozen and without the teacher's LoRA. For each student it measures
which share of these completions it could write at all (``whole_coverage``) and its greedy accuracy on the test
problems. This is a ceiling for reinforcement learning of the same policy. A student in OUT that is already measured is
skipped.

Letters: N completions, T tokens, M positions, H hidden.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import trange
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.completions import Checks
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.evaluation.free_running import evaluate
from ollm_rl.agents.policies.anchored import RestrictedPolicy
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.loading import load_policy, new_policy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.answers.pool import shared_pool
from ollm_rl.backbones.loading import context_length
from ollm_rl.backbones.output_head import last_hidden_states
from ollm_rl.backbones.vocabulary import end_tokens
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import Rollout, collect
from ollm_rl.decode.turns import Turns
from ollm_rl.devices import resolve_device
from ollm_rl.experiments.script import positive, start
from ollm_rl.metrics.statistics import bootstrap_interval
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.prompts import encode_prompts
from ollm_rl.problems.sources import load_problems
from ollm_rl.report.tables import Estimate, Table
from ollm_rl.runs import origin, write_atomic

STUDENTS = ("latent", "anchored", "top-tokens", "frozen-head")
OVER_TOKENS = ("top-tokens", "frozen-head")
PASS_COMPLETIONS = 64  # in one pass of the backbone
MINIBATCH = 2_048  # positions


def right_completions(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], args: argparse.Namespace
) -> Rollout:
    """The right ones of ``args.samples`` completions per problem, on the policy's device."""
    repeated = [problem for problem in problems for _ in range(args.samples)]
    length = context_length(policy.backbone)
    prompts = encode_prompts(repeated, tokenizer, max_length=length, max_new_tokens=args.max_new_tokens)
    engine = DecodeEngine(policy.backbone, args.num_slots, max(map(len, prompts)) + args.max_new_tokens)
    ends = end_tokens(policy.backbone, tokenizer)
    checks = Checks(repeated, tokenizer, ends, shared_pool())
    rollout = collect(
        Turns(engine, policy.act),
        prompts,
        max_new_tokens=args.max_new_tokens,
        end_tokens=ends,
        generator=torch.Generator().manual_seed(args.seed),
        on_end=checks.begin,
    )
    right = torch.tensor([one.verdict.correct and one.terminated for one in checks.finish()])
    if not right.any():
        sys.exit(f"none of {len(right)} completions of {args.teacher} is right; give another teacher or more --samples")
    return rollout.select(right.nonzero()[:, 0].tolist())


@torch.no_grad()
def positions(policy: Policy, completions: Rollout) -> tuple[Rollout, float]:
    """Every token of the completions as an episode of its own, with the backbone's h_t.

    Returns:
        The M positions, whose ``decisions`` are those where the policy can learn, and the share of the completions that
        the policy could write whole.
    """
    hidden, tokens, first = [], [], []
    for rows in torch.arange(len(completions.prompts)).split(PASS_COMPLETIONS):
        part = completions.select(rows.tolist())
        input_ids, previous = part.sequences()
        states = last_hidden_states(policy.backbone, input_ids)
        states = states.gather(1, previous[..., None].expand(-1, -1, states.shape[-1]))
        hidden.append(states[part.completion_mask])
        tokens.append(part.tokens[part.completion_mask])
        first.append(torch.zeros_like(part.tokens).index_fill_(1, part.tokens.new_zeros(1), 1)[part.completion_mask])
    states, targets = torch.cat(hidden), torch.cat(tokens)
    stored = {"hidden_states": states[:, None]}
    learnable = missing = torch.zeros_like(targets, dtype=torch.bool)
    if isinstance(policy, OptionPolicy | RestrictedPolicy):
        offer = policy.model.option_tokens if isinstance(policy, OptionPolicy) else policy.offer
        offered = torch.cat([offer(part) for part in states.split(MINIBATCH)])
        same = offered == targets[:, None]
        missing = ~same.any(1)
        learnable = missing | (offered == offered[:, :1]).all(1)
        stored |= {"option_tokens": offered[:, None], "options": same.int().argmax(1)[:, None]}
    number = torch.cat(first).cumsum(0)
    whole = 1 - number[missing].unique().numel() / len(completions.prompts)
    zeros = torch.zeros(len(targets), 1, device=targets.device)
    ones = torch.ones_like(zeros, dtype=torch.bool)
    rollout = Rollout(
        [[]] * len(targets), targets[:, None], ones, ~learnable[:, None], zeros, zeros, ones[:, 0], stored
    )
    return rollout, whole


def imitate(policy: Policy, rollout: Rollout, args: argparse.Namespace) -> float:
    """Train a policy by cross-entropy at the decisions of a rollout; returns the last pass's mean loss in nats."""
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=args.learning_rate)
    rows = rollout.decisions[:, 0].nonzero()[:, 0].cpu()
    generator = torch.Generator().manual_seed(args.seed)
    losses: list[float] = []
    for _ in trange(args.passes, desc="imitation"):
        losses = []
        for part in rows[torch.randperm(len(rows), generator=generator)].split(MINIBATCH):
            loss = -policy.evaluate(rollout.select(part.tolist(), 1)).log_probs.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def measure(name: str, completions: Rollout, test: Sequence[Problem], args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one student."""
    settings: dict[str, Any] = {"action_space": "tokens" if name in OVER_TOKENS else "options", "policy": name}
    config = RLConfig(model=args.options, data=args.train, out=args.out, dtype=args.dtype, **settings)
    torch.manual_seed(args.seed)
    policy, tokenizer = new_policy(config, torch.device(args.device))

    def accuracy() -> list[float]:
        settings = {"max_new_tokens": args.max_new_tokens, "num_slots": args.num_slots}
        rows = evaluate(policy, tokenizer, test, **settings, name=name)["completions"]
        correct = [row["correct"] for row in rows]
        return [sum(correct) / len(correct), *bootstrap_interval(correct)]

    rollout, whole = positions(policy, completions)
    before = accuracy()
    loss = imitate(policy, rollout, args)
    return {"whole_coverage": whole, "loss": loss, "before": before, "after": accuracy()}


def main() -> None:
    """Measure the students that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--teacher", required=True, help="training run, or another model, whose completions are imitated"
    )
    parser.add_argument("--options", required=True, help="option plug-in of the students")
    parser.add_argument("--train", required=True, help="source of the problems that the teacher answers")
    parser.add_argument("--test", required=True, help="source of the test problems")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--students", nargs="+", default=STUDENTS, choices=STUDENTS)
    parser.add_argument("--samples", type=positive, default=8, help="completions per training problem")
    parser.add_argument("--passes", type=positive, default=12, help="over the right completions")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=positive, help="problems per source; all of jsonl: where left out")
    parser.add_argument("--max-new-tokens", type=positive, default=128)
    parser.add_argument("--num-slots", type=positive, default=512)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    args.device = str(resolve_device("auto"))
    train = load_problems(args.train, split="train", limit=args.limit)
    test = load_problems(args.test, split="test", limit=args.limit)
    teacher, tokenizer = load_policy(args.teacher, dtype=getattr(torch, args.dtype), device=args.device)
    completions = right_completions(teacher, tokenizer, train, args)
    rows = []
    for name in args.students:
        path = args.out / f"{name}.json"
        if not path.exists():
            write_atomic(path, json.dumps({**measure(name, completions, test, args), **origin()}, indent=1))
        result = json.loads(path.read_text())
        numbers = [result["whole_coverage"], result["loss"]]
        rows.append(
            [name, *(f"{number:.3f}" for number in numbers), Estimate(*result["before"]), Estimate(*result["after"])]
        )
    note = f"{len(completions.prompts)} right completions of {len(train)} problems; greedy on {len(test)} problems."
    columns = ["student", "whole coverage", "loss", "greedy before", "greedy after"]
    print(Table("Imitation", note, columns, rows).markdown())


if __name__ == "__main__":
    start(main)
