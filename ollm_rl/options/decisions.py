"""Options that lead to the same token are one decision, with the sum of their probabilities.

This keeps the expectation of a policy gradient and lowers its variance.

Letters: K options; ``...`` any leading dimensions.
"""

import torch


def same_token(option_tokens: torch.Tensor) -> torch.Tensor:
    """Which options lead to the same token: (..., K) -> (..., K, K)."""
    return option_tokens[..., :, None] == option_tokens[..., None, :]


def token_log_probs(option_logits: torch.Tensor, option_tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of each option's token, summed over options that lead to it: (..., K), (..., K) -> (..., K)."""
    log_probs = option_logits.log_softmax(-1)
    return log_probs[..., None, :].masked_fill(~same_token(option_tokens), -torch.inf).logsumexp(-1)


def decision_log_prob(log_probs: torch.Tensor, option_tokens: torch.Tensor, options: torch.Tensor) -> torch.Tensor:
    """Log of the summed probability of all options that lead to the chosen option's token.

    Args:
        log_probs: Log-probability of every option, (..., K).
        option_tokens: Token of every option, (..., K).
        options: Chosen options, (...).

    Returns:
        (...).
    """
    chosen_tokens = option_tokens.gather(-1, options[..., None])
    return log_probs.masked_fill(option_tokens != chosen_tokens, -torch.inf).logsumexp(-1)


def is_first(option_tokens: torch.Tensor) -> torch.Tensor:
    """True at the first option that leads to each token: (..., K) -> (..., K)."""
    first = same_token(option_tokens).int().argmax(-1)
    return first == torch.arange(option_tokens.shape[-1], device=option_tokens.device)


def distinct_tokens(option_tokens: torch.Tensor) -> torch.Tensor:
    """Number of distinct tokens among the options: (..., K) -> (...)."""
    return is_first(option_tokens).sum(-1)
