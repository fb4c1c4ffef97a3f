"""The terms of the option loss as pure functions (OLLM, eq. 4-6), and the adaptive weight of the KL term.

Letters: N positions, H hidden, K options, V vocabulary.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 2**25  # elements of one chunk's (n, K, V) logits: 128 MiB in float32


def option_cross_entropy(
    decode: Callable[[torch.Tensor], torch.Tensor],
    hidden_states: torch.Tensor,
    targets: torch.Tensor,
    *,
    num_options: int,
    vocab_size: int,
    max_logits: int = MAX_LOGITS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the next token under every option (OLLM, eq. 4), in chunks of positions.

    The logits of a chunk are computed again in the backward pass, so the (N, K, V) tensor never exists whole.

    Args:
        decode: Maps hidden states (n, H) to the logits of every option (n, K, V).
        hidden_states: (N, H).
        targets: Token ids (N,).
        num_options: K.
        vocab_size: V.
        max_logits: Bound on n * K * V of a chunk.

    Returns:
        Cross-entropies (N, K) in nats, with gradient, and the most probable tokens (N, K).
    """

    def one_chunk(hidden: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = decode(hidden).float()
        repeated = target[:, None].expand(-1, num_options)
        losses = F.cross_entropy(logits.flatten(0, 1), repeated.flatten(), reduction="none")
        return losses.view(-1, num_options), logits.argmax(-1)

    chunk = max(1, max_logits // (num_options * vocab_size))
    if len(targets) <= chunk:  # all fits: keeping the logits is cheaper than computing them twice
        return one_chunk(hidden_states, targets)
    parts = [
        checkpoint(one_chunk, hidden, target, use_reentrant=False)
        for hidden, target in zip(hidden_states.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat([losses for losses, _ in parts]), torch.cat([tokens for _, tokens in parts])


def expected_cross_entropy(encoder_logits: torch.Tensor, cross_entropies: torch.Tensor) -> torch.Tensor:
    """E_q[CE], the exact sum over options: (N, K), (N, K) -> scalar, mean over positions, in nats (OLLM, eq. 4)."""
    return (encoder_logits.softmax(-1) * cross_entropies).sum(-1).mean()


def kl_to_uniform(encoder_logits: torch.Tensor) -> torch.Tensor:
    """KL(q || uniform over K) = log K - H(q): (N, K) -> scalar, mean over positions, in nats (OLLM, eq. 5)."""
    log_q = encoder_logits.log_softmax(-1)
    return math.log(encoder_logits.shape[-1]) + (log_q.exp() * log_q).sum(-1).mean()


def policy_imitation_loss(policy_logits: torch.Tensor, encoder_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the policy against the encoder's distribution (OLLM, eq. 6), in nats.

    The encoder's side carries no gradient: the policy follows the encoder, never the other way round.

    Args:
        policy_logits: (N, K).
        encoder_logits: (N, K).

    Returns:
        Scalar, mean over positions.
    """
    return -(encoder_logits.detach().softmax(-1) * policy_logits.log_softmax(-1)).sum(-1).mean()


class AdaptiveKLWeight(nn.Module):
    """Weight of the KL term that holds it near a target (OLLM, Sec. 2.3).

    The weight grows while the measured KL is above the target and shrinks while it is below, by a factor
    ``exp(rate * error)`` with the relative error clipped to [-1, 1], within ``[min_weight, max_weight]``. The paper
    does not give its rule; this one is common for adaptive penalties. The weight is a buffer, so it is saved and
    resumed with the module.
    """

    weight: torch.Tensor

    def __init__(
        self, target: float, init: float, *, rate: float = 0.05, min_weight: float = 1e-4, max_weight: float = 10.0
    ) -> None:
        super().__init__()
        self.target, self.rate, self.min_weight, self.max_weight = target, rate, min_weight, max_weight
        self.register_buffer("weight", torch.tensor(float(init)))

    def update(self, kl: float) -> float:
        """Move the weight by one step and return it.

        Args:
            kl: Mean over the batch of KL(q || uniform), in nats; at least 0.

        Raises:
            ValueError: If ``kl`` is NaN or infinite; the weight is left as it was.
        """
        if not math.isfinite(kl):
            raise ValueError(f"kl={kl} is not finite; lower the learning rate or look for NaN in the backbone's output")
        error = max(-1.0, min(1.0, (kl - self.target) / self.target))
        moved = float(self.weight) * math.exp(self.rate * error)
        self.weight.fill_(max(self.min_weight, min(self.max_weight, moved)))
        return float(self.weight)
