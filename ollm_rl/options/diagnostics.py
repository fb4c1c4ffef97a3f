"""Measures what the options learned: usage, how much they differ, and whether they offer the backbone's likely tokens.

Letters: N positions, K options, V vocabulary.
"""

import math

import torch

from ollm_rl.options.config import OptionConfig
from ollm_rl.options.decisions import distinct_tokens
from ollm_rl.options.model import CountedStates, OptionModel

MODE_PROBABILITY = 0.1  # a token is a mode if the backbone gives it at least this probability
FIRST_TOKENS = 8  # of a completion
MAX_POSITIONS = 512  # of a batch that are measured
# Options have collapsed if a measure is below its limit.
COLLAPSED_KL = 0.1  # of the target
COLLAPSED_DISTINCT = 1.02  # tokens per position
COLLAPSED_USAGE = 0.2


def option_usage(option_probs: torch.Tensor) -> torch.Tensor:
    """Entropy of the mean of q, divided by log K: (N, K) -> scalar. 1 for uniform usage, 0 if only one is used.

    With K = 1 usage is uniform.
    """
    mean = option_probs.mean(0)
    if len(mean) == 1:
        return torch.ones_like(mean[0])
    return torch.special.entr(mean).sum() / math.log(len(mean))


def mutual_information(log_probs: torch.Tensor, log_policy: torch.Tensor) -> torch.Tensor:
    """I(z; x | h) = sum_z pi(z) KL(p(x | h, z) || sum_z' pi(z') p(x | h, z')), in nats.

    The information that the option gives about the next token when the policy chooses options. It is 0 if all options
    give the same distribution, and at most the policy's entropy.

    Args:
        log_probs: log p(x | h, z), (N, K, V).
        log_policy: log pi(z | h), (N, K).

    Returns:
        (N,).
    """
    mixture = (log_policy[..., None] + log_probs).logsumexp(1)
    entropies = torch.special.entr(log_probs.exp()).sum(-1)
    return torch.special.entr(mixture.exp()).sum(-1) - (log_policy.exp() * entropies).sum(-1)


def covered_modes(option_tokens: torch.Tensor, backbone_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the modes of each position, and those of them that some option offers as its most probable token.

    A mode is a token to which the backbone gives a probability of at least MODE_PROBABILITY.

    Args:
        option_tokens: Most probable token under every option, (N, K).
        backbone_probs: (N, V).

    Returns:
        Numbers of modes and of offered modes, (N,) each.
    """
    modes = backbone_probs >= MODE_PROBABILITY
    offered = torch.zeros_like(modes).scatter_(1, option_tokens, True)
    return modes.sum(1), (modes & offered).sum(1)


def whole_coverage(offered: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Share of the solutions that the options offer whole, since some option offers every token of it.

    A policy over the options can write only these solutions. The last one, which the batch may cut off, does not count.

    Args:
        offered: Whether some option offers the true token, (N,).
        offsets: Position of that token within its solution, from 0, (N,).

    Returns:
        A scalar; NaN without a whole solution.
    """
    number = (offsets == 0).cumsum(0)
    total = (number.max() - 1).clamp(min=0)
    missed = number[~offered & (number > 0) & (number <= total)].unique().numel()
    return 1 - missed / total.float()


@torch.no_grad()
def option_diagnostics(
    model: OptionModel, states: CountedStates, *, max_positions: int = MAX_POSITIONS
) -> dict[str, float]:
    """Measure the options at the first positions of a batch.

    Args:
        model: The option model.
        states: Counted states of a batch.
        max_positions: Maximum number of positions; all their (N, K, V) logits are in memory together.

    Returns:
        ``distinct_tokens`` per position; ``live_share``, the share of positions where options differ;
        ``oracle_token_accuracy``, the share of true tokens that some option offers; ``whole_coverage``, the share of
        solutions that options offer whole (NaN without one); ``mutual_information`` in nats;
        ``mode_coverage_live`` and ``mode_coverage_first``, the share of the backbone's modes that some option offers,
        over live positions (left out with one option) and over the first FIRST_TOKENS of a completion (NaN without such
        positions).
    """
    hidden, targets, offsets = (part[:max_positions] for part in states)
    hidden = hidden.to(model.backbone.dtype)
    log_probs = model.decode_options(hidden).float().log_softmax(-1)
    tokens = log_probs.argmax(-1)
    distinct = distinct_tokens(tokens)
    modes, offered = covered_modes(tokens, model.lm_logits(hidden).float().softmax(-1))
    live, first = distinct > 1, offsets < FIRST_TOKENS
    right = (tokens == targets[:, None]).any(-1)
    information = mutual_information(log_probs, model.option_logits(hidden).log_softmax(-1))
    values = {
        "distinct_tokens": distinct.float().mean(),
        "live_share": live.float().mean(),
        "oracle_token_accuracy": right.float().mean(),
        "whole_coverage": whole_coverage(right, offsets),
        "mutual_information": information.mean(),
        "mode_coverage_live": offered[live].sum() / modes[live].sum(),
        "mode_coverage_first": offered[first].sum() / modes[first].sum(),
    }
    if model.option_config.num_options == 1:
        del values["mode_coverage_live"]
    return {name: float(value) for name, value in values.items()}


def collapse_warning(metrics: dict[str, float], config: OptionConfig) -> str | None:
    """One line that says how the options collapsed and what to change; None if they did not, or there is only one.

    Args:
        metrics: ``kl``, ``distinct_tokens`` and ``option_usage``.
        config: The plug-in's settings.
    """
    if config.num_options == 1:
        return None
    if metrics["kl"] < COLLAPSED_KL * (config.kl_target or 0.1):
        how = f"the encoder carries no information about the next token (KL {metrics['kl']:.2g} nats)"
    elif metrics["distinct_tokens"] < COLLAPSED_DISTINCT:
        how = f"all options predict the same token ({metrics['distinct_tokens']:.2f} distinct tokens per position)"
    elif metrics["option_usage"] < COLLAPSED_USAGE:
        how = f"only one option is used (usage {metrics['option_usage']:.2f} of 1)"
    else:
        return None
    change = (
        f"raise options.kl_target above {config.kl_target}" if config.kl_target else "set options.kl_target, say 0.4"
    )
    if config.prior == "policy":  # a policy that always chooses one option keeps the encoder there
        change = f"use options.prior=uniform, {change}"
    return (
        f"the options collapsed: {how}; {change}, start with options.kl_weight_init below {config.kl_weight_init}, or "
        "train on text with real ambiguity"
    )
