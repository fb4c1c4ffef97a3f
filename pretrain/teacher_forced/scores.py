"""How well backbone and options predict the true next token at each position, as pure functions on tensors.

Each function returns, by (column, measure), one number per position: ``right`` (1 where the column's token is the true
one), ``nll`` (of the true token, in nats), ``information`` and ``decision_nll`` (see ``revealed``).

Letters: N positions, K options, V vocabulary.
"""

import torch

from ollm_rl.options.decisions import decision_log_prob, distinct_tokens, token_log_probs
from ollm_rl.options.diagnostics import FIRST_TOKENS, covered_modes, mutual_information

Scores = dict[tuple[str, str], torch.Tensor]

DETERMINISTIC = 0.1  # nats; the paper's thresholds (Sec. 2.1) are not in the text that we have
AMBIGUOUS = 1.0  # nats


def score_tokens(column: str, logits: torch.Tensor, targets: torch.Tensor) -> Scores:
    """Score a distribution over the vocabulary.

    Args:
        column: Name of the scored distribution.
        logits: (N, V).
        targets: True tokens, (N,).
    """
    nll = logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]
    return {(column, "right"): logits.argmax(-1) == targets, (column, "nll"): nll}


def score_ambiguity(logits: torch.Tensor) -> Scores:
    """Entropy (nats) and probability of the two most probable tokens: (N, V) -> (N,) each (OLLM, App. B)."""
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    top_two = log_probs.topk(2).values.exp().sum(-1)
    return {
        ("ambiguity", "entropy"): entropy,
        ("ambiguity", "deterministic"): entropy < DETERMINISTIC,
        ("ambiguity", "ambiguous"): entropy > AMBIGUOUS,
        ("ambiguity", "top_two"): top_two,
        ("ambiguity", "ambiguous_top_two"): top_two * (entropy > AMBIGUOUS),
    }


def score_options(
    logits: torch.Tensor, log_policy: torch.Tensor, encoder_probs: torch.Tensor, targets: torch.Tensor
) -> Scores:
    """Score the four ways to read the options.

    - ``oracle``: the best option in hindsight. It is right if the most probable token of any option is the true one.
      Its NLL is the smallest of the K.
    - ``encoder``: the option most probable under q(z | h_t, e(x_{t+1})), which has seen the true token.
    - ``policy``: the token with the most votes: pi(z | h_t) summed over the options whose most probable token it is.
      Its NLL is that of the option most probable under pi.
    - ``mixture``: p(x) = sum_z pi(z | h_t) p(x | h_t, z).

    Args:
        logits: (N, K, V).
        log_policy: log pi(z | h_t), (N, K).
        encoder_probs: q, (N, K).
        targets: True tokens, (N,).
    """
    option_tokens = logits.argmax(-1)
    nll = logits.logsumexp(-1) - logits.gather(-1, targets[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
    right = option_tokens == targets[:, None]
    voted = token_log_probs(log_policy, option_tokens).argmax(-1)
    mixture = (log_policy.exp()[:, None] @ logits.softmax(-1))[:, 0]
    oracle, encoder = nll.argmin(-1), encoder_probs.argmax(-1)
    return {
        ("oracle", "right"): right.any(-1),
        ("oracle", "nll"): _at(nll, oracle),
        **revealed("oracle", oracle, option_tokens, log_policy, nll),
        ("encoder", "right"): _at(right, encoder),
        ("encoder", "nll"): _at(nll, encoder),
        **revealed("encoder", encoder, option_tokens, log_policy, nll),
        ("policy", "right"): _at(right, voted),
        ("policy", "nll"): _at(nll, log_policy.argmax(-1)),
        ("mixture", "right"): mixture.argmax(-1) == targets,
        ("mixture", "nll"): -(log_policy - nll).logsumexp(-1),
        ("options", "distinct"): distinct_tokens(option_tokens),
    }


def score_coverage(
    logits: torch.Tensor, backbone_logits: torch.Tensor, log_policy: torch.Tensor, offsets: torch.Tensor
) -> Scores:
    """What a choice among the options can reach: the backbone's modes that they offer, and I(z; x | h).

    Args:
        logits: Logits of every option, (N, K, V).
        backbone_logits: (N, V).
        log_policy: log pi(z | h_t), (N, K).
        offsets: Position within the completion, from 0, (N,).
    """
    option_tokens = logits.argmax(-1)
    modes, offered = covered_modes(option_tokens, backbone_logits.softmax(-1))
    live, first = distinct_tokens(option_tokens) > 1, offsets < FIRST_TOKENS
    return {
        ("options", "live"): live,
        ("options", "mutual_information"): mutual_information(logits.log_softmax(-1), log_policy),
        ("live_modes", "all"): modes * live,
        ("live_modes", "offered"): offered * live,
        ("first_modes", "all"): modes * first,
        ("first_modes", "offered"): offered * first,
    }


def revealed(
    column: str, choice: torch.Tensor, option_tokens: torch.Tensor, log_policy: torch.Tensor, nll: torch.Tensor
) -> Scores:
    """How much information the choice of an option reveals, and the NLL of the true token given only that information.

    Options with the same most probable token are one decision D. ``information`` is the code length of the decision
    given h_t, -log pi(D); it is 0 where all options agree. ``decision_nll`` is the NLL of the true token when only the
    decision is known: under sum over z in D of pi(z) p(x | h_t, z) / pi(D). The NLL of the chosen option itself would
    also use which option of D was chosen, which ``information`` does not count. So information plus decision_nll is
    never below the mixture's NLL.

    Args:
        column: Name of the column that makes the choice.
        choice: Chosen option, (N,).
        option_tokens: Most probable token under every option, (N, K).
        log_policy: log pi(z | h_t), (N, K).
        nll: NLL of the true token under every option, (N, K).
    """
    # Exactly 0 where nothing is revealed, so that no gain is divided by a rounding error.
    agreed = distinct_tokens(option_tokens) == 1
    information = (-decision_log_prob(log_policy, option_tokens, choice)).masked_fill(agreed, 0.0)
    log_joint = decision_log_prob(log_policy - nll, option_tokens, choice)
    return {(column, "information"): information, (column, "decision_nll"): -information - log_joint}


def _at(values: torch.Tensor, options: torch.Tensor) -> torch.Tensor:
    """Each position's value at its option: (N, K), (N,) -> (N,)."""
    return values.gather(-1, options[:, None])[:, 0]
