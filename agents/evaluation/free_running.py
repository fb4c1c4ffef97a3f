"""Free-running evaluation of policies: accuracy with an interval, language switching, degeneracy."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ollm_rl.agents.completions import Checks, Completion, Row, mean_terms, own_rewarded, rates
from ollm_rl.agents.evaluation.config import EvalConfig
from ollm_rl.agents.evaluation.results import (
    ResultFile,
    hash_problems,
    hash_weights,
    refuse_shared_files,
    write_summary,
)
from ollm_rl.agents.policies.base import Acts, Policy
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.agents.policies.sampling import Tempered
from ollm_rl.answers.pool import shared_pool
from ollm_rl.backbones.loading import as_tokenizer, context_length
from ollm_rl.backbones.names import resolve
from ollm_rl.backbones.vocabulary import end_tokens
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import collect
from ollm_rl.decode.turns import Chooser, Turns
from ollm_rl.devices import resolve_device
from ollm_rl.envs.own_rewards import OwnReward, Rewards, measured_rewards, own_rewards, source_hash
from ollm_rl.errors import UsageError
from ollm_rl.metrics.measuring import measuring_pool
from ollm_rl.metrics.samples import majority, pass_at_k
from ollm_rl.metrics.statistics import bootstrap_interval
from ollm_rl.problems.problem import Problem, listed
from ollm_rl.problems.prompts import encode_prompts, format_prompts
from ollm_rl.problems.sources import load_problems
from ollm_rl.runs import origin
from ollm_rl.safekeeping.outputs import output_folder
from ollm_rl.settings import Count, Share, Temperature, checked, expect, shown
from ollm_rl.streams import Purpose, torch_generator

OnPart = Callable[[list[Completion], float], None]  # gets all completions and seconds so far


class Begun(NamedTuple):
    """An evaluation that was interrupted.

    Attributes:
        done: Completions of the first problems.
        seconds: Seconds that these took.
        on_part: Called after each further part, to save it.
    """

    done: Sequence[Completion] = ()
    seconds: float = 0.0
    on_part: OnPart | None = None


def run_eval(config: EvalConfig) -> list[dict[str, Any]]:
    """Evaluate every model on every problem set.

    With ``out`` each result is a file of that folder, and pairs already evaluated are skipped; ``results.json`` and
    ``results.md`` list all results of the folder.

    Returns:
        A result of ``evaluate`` for each pair, model by model, with ``model``, ``data``, their settings and origin.

    Raises:
        UsageError: If a setting, a model or the data do not fit, or ``out`` cannot be written, is in use by another
            evaluation, holds other results of the same names, or two results would have one name.
    """
    expect(config, EvalConfig)
    device = resolve_device(config.device)
    rewards = measured_rewards(config.reward)
    code = {"rewards": source_hash(rewards)} if rewards else {}
    problems = {
        data: load_problems(data, split=config.split, columns=config.columns, limit=config.limit, seed=config.seed)
        for data in config.data
    }
    models = {name: resolve(name) for name in config.model}
    files = {
        (name, data): ResultFile(config, name, data, {"weights": weights, "problems": hash_problems(part), **code})
        for name, weights in {name: hash_weights(model) for name, model in models.items()}.items()
        for data, part in problems.items()
    }
    refuse_shared_files(files.values())
    with output_folder(config.out, "an evaluation"):
        results = {pair: file.read() for pair, file in files.items()}
        if None in results.values():
            measuring_pool(device.type)  # now, since it starts while a model is loaded
        for name, model in models.items():
            missing = [pair for pair, result in results.items() if pair[0] == name and result is None]
            loaded = load_policy(model, dtype=getattr(torch, config.dtype), device=device) if missing else None
            for pair in missing:
                assert loaded is not None
                format_prompts(loaded[1], config)
                result = _evaluated(config, files[pair], *loaded, problems[pair[1]], rewards)
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
    rewards: Sequence[OwnReward],
) -> dict[str, Any]:
    """The result of one pair, from where an interrupted evaluation of it stopped."""
    rows, seconds = file.begun()
    repeated = [problem for problem in problems for _ in range(config.samples)]
    return evaluate(
        policy,
        tokenizer,
        problems,
        max_new_tokens=config.max_new_tokens,
        num_slots=config.num_slots,
        generator=torch_generator(config.seed, Purpose.EVALUATION) if config.sample else None,
        temperature=config.temperature,
        top_p=config.top_p,
        samples=config.samples,
        reward=rewards,
        name=f"{file.settings['model']} on {file.settings['data']}",
        begun=Begun(
            [Completion.from_row(*pair) for pair in zip(rows, repeated, strict=False)],
            seconds,
            lambda completions, seconds: file.keep([one.row() for one in completions], seconds),
        ),
    )


def evaluate(
    policy: Acts,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    max_new_tokens: int = 96,
    num_slots: int = 256,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    samples: int = 1,
    reward: Rewards = None,
    turns: Turns | None = None,
    name: str = "evaluation",
    begun: Begun | None = None,
) -> dict[str, Any]:
    """Let a policy write completions of problems and measure them.

    Args:
        policy: What `load_policy` gives, or an object of your own with a ``backbone`` and a method ``act`` (`Acts`).
        tokenizer: Tokenizer of its backbone.
        problems: At least one.
        max_new_tokens: Token limit.
        num_slots: Episodes decoded in parallel.
        generator: A CPU generator to sample with; None decodes greedily.
        temperature: Of the samples. Other than 1 it needs a policy with ``choices``, and so does ``top_p`` below 1.
        top_p: Samples are drawn from the most probable tokens that together have this probability.
        samples: Samples per problem.
        reward: Reward functions of your own, as for `ollm_rl.envs.own_rewards.own_rewards`. Each is measured by itself,
            whatever its weight.
        turns: Turns of the policy on an engine whose slots fit the prompts and limits; created if left out.
        name: Shown beside the progress bar.
        begun: Where an earlier call was interrupted.

    Returns:
        What `measured` returns, and ``eval_seconds``.

    Raises:
        UsageError: If an argument does not fit.
    """
    if not callable(getattr(policy, "act", None)):
        raise UsageError(f"policy={shown(policy)} has no method act; give what load_policy returns")
    problems = listed(problems)
    _check(max_new_tokens, num_slots, generator, (temperature, top_p, samples))
    work = _Work(policy.backbone, tokenizer, problems, samples, max_new_tokens, own_rewards(reward))
    turns = turns or work.turns(_chooser(policy, temperature, top_p), num_slots)
    return work.run(turns, num_slots, generator, name, begun or Begun())


def _chooser(policy: Any, temperature: float, top_p: float) -> Chooser:
    """What chooses the tokens.

    Raises:
        UsageError: If the policy cannot be sampled so.
    """
    temperature = checked("temperature", temperature, Temperature)
    if checked("top_p", top_p, Share) == 0:
        raise UsageError(f"top_p={top_p} must be more than 0")
    if temperature == top_p == 1:
        return cast(Chooser, policy.act)
    if not hasattr(policy, "choices"):
        raise UsageError(
            f"temperature={temperature} and top_p={top_p} need the choices of the policy, and {type(policy).__name__} "
            "lists none; leave both at 1, or write its method choices"
        )
    return Tempered(policy, temperature, top_p).act


def _check(
    max_new_tokens: int,
    num_slots: int,
    generator: torch.Generator | None,
    sampling: tuple[float, float, int],
) -> None:
    """Refuse numbers out of range, and samples without random numbers."""
    checked("max_new_tokens", max_new_tokens, Count)
    checked("num_slots", num_slots, Count)
    checked("samples", sampling[2], Count)
    if generator is None and sampling != (1, 1, 1):
        raise UsageError("temperature, top_p and samples are not used in greedy decoding; give a generator")


class _Work:
    """What one evaluation writes: ``samples`` completions of each problem, which are adjacent."""

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Problem],
        samples: int,
        max_new_tokens: int,
        rewards: Sequence[OwnReward],
    ) -> None:
        self.backbone, self.tokenizer, self.samples = backbone, as_tokenizer(tokenizer), samples
        self.max_new_tokens, self.rewards, self.ends = max_new_tokens, rewards, end_tokens(backbone, tokenizer)
        self.measuring = measuring_pool(backbone.device.type)
        context = context_length(backbone)
        prompts = encode_prompts(problems, tokenizer, max_length=context, max_new_tokens=max_new_tokens)
        self.problems = [problem for problem in problems for _ in range(samples)]
        self.prompts = [prompt for prompt in prompts for _ in range(samples)]

    def turns(self, choose: Chooser, num_slots: int) -> Turns:
        """Turns on an engine of their own."""
        longest = max(map(len, self.prompts)) + self.max_new_tokens
        return Turns(DecodeEngine(self.backbone, min(num_slots, len(self.prompts)), longest), choose)

    def run(
        self, turns: Turns, num_slots: int, generator: torch.Generator | None, name: str, begun: Begun
    ) -> dict[str, Any]:
        """Write what is missing, and measure all."""
        completions = list(begun.done)
        if generator is not None and completions:
            torch.rand(len(completions), self.max_new_tokens, generator=generator)  # skip the numbers that sampled them
        started = time.perf_counter() - begun.seconds  # as if it had never been interrupted
        with tqdm(total=len(self.problems), initial=len(completions), desc=f"evaluate {name}") as bar:
            # Several times the slots, so that slots are refilled.
            for start in range(len(completions), len(self.problems), 2 * num_slots):
                part = self._write(turns, slice(start, start + 2 * num_slots), generator, bar)
                completions += own_rewarded(part, self.rewards)
                if begun.on_part is not None:
                    begun.on_part(completions, time.perf_counter() - started)
        return {**measured(completions, self.samples), "eval_seconds": time.perf_counter() - started}

    def _write(self, turns: Turns, part: slice, generator: torch.Generator | None, bar: tqdm) -> list[Completion]:
        """Completions of some of the prompts."""
        checks = Checks(self.problems[part], self.tokenizer, self.ends, shared_pool(), self.measuring)

        def on_end(episodes: list[int], tokens: list[list[int]]) -> None:
            bar.update(len(episodes))
            checks.begin(episodes, tokens)

        collect(
            turns,
            self.prompts[part],
            max_new_tokens=self.max_new_tokens,
            end_tokens=self.ends,
            generator=generator,
            on_end=on_end,
            on_wait=checks.measure,
        )
        return checks.finish()


def measured(completions: Sequence[Completion], samples: int = 1) -> dict[str, Any]:
    """What an evaluation measures of completions, at least one.

    Args:
        completions: Those of a problem are adjacent.
        samples: Number of completions per problem.

    Returns:
        ``accuracy``, the mean over completions, with its 95 % bootstrap interval over problems ``low``, ``high``; what
        `rates` returns; ``reward_NAME``, the mean of each term of rewards of one's own; ``num_problems``; and
        ``completions``, their rows. With n ``samples`` also ``avg_at_n``, the accuracy again; ``maj_at_n``, that of the
        answer that most of a problem's n samples state; and ``pass_at_k`` for k = 1, 2, 4, ... and n.
    """
    correct = [one.verdict.correct for one in completions]
    groups = [completions[start : start + samples] for start in range(0, len(completions), samples)]
    low, high = bootstrap_interval([sum(one.verdict.correct for one in group) / samples for group in groups])
    rows: list[Row] = [one.row() for one in completions]
    return {
        "accuracy": sum(correct) / len(correct),
        "low": low,
        "high": high,
        **(_at_k(groups, samples) if samples > 1 else {}),
        **rates(completions),
        **mean_terms(completions),
        "num_problems": len(groups),
        "completions": rows,
    }


def _at_k(groups: Sequence[Sequence[Completion]], samples: int) -> dict[str, float]:
    """``avg_at_n``, ``maj_at_n`` and ``pass_at_k`` of problems with n samples each."""
    numbers = [sum(one.verdict.correct for one in group) for group in groups]
    voted = [group[majority([one.verdict.extracted for one in group])].verdict.correct for group in groups]
    powers = sorted({*(2**power for power in range(samples.bit_length())), samples})
    return {
        f"avg_at_{samples}": sum(numbers) / (samples * len(groups)),
        f"maj_at_{samples}": sum(voted) / len(groups),
        **{f"pass_at_{k}": sum(pass_at_k(samples, number, k) for number in numbers) / len(groups) for k in powers},
    }
