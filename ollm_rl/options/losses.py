"""The terms of the option loss as pure functions (OLLM, eq. 4-6), and the adaptive weight of the KL term.

Letters: N positions, H hidden, K options, V vocabulary.
"""

import functools
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ollm_rl.backbones.chunks import MAX_LOGITS
from ollm_rl.devices import HAS_TRITON
from ollm_rl.errors import UsageError


def token_cross_entropy(
    hidden_states: torch.Tensor,
    head: nn.Linear,
    targets: torch.Tensor,
    *,
    soft_cap: float | None = None,
    max_logits: int = MAX_LOGITS,
) -> torch.Tensor:
    """Cross-entropy of the next token under a frozen output head, computed in chunks of logits.

    The gradient with respect to the hidden states is computed with the loss, while a chunk's logits exist. So no
    chunk is computed twice, and memory grows only with N * H. ``torch.nn.functional.linear_cross_entropy`` computes
    the logits again in the backward pass if the loss of every position is requested, and has no soft cap.

    Args:
        hidden_states: (N, H).
        head: The frozen head, (V, H) with or without a bias; it gets no gradient.
        targets: Token ids (N,).
        soft_cap: Logits x become cap * tanh(x / cap) (Gemma 2).
        max_logits: Maximum n * V of a chunk of n positions.

    Returns:
        (N,) in nats.
    """
    losses: torch.Tensor = _TokenCrossEntropy.apply(
        hidden_states, head.weight, head.bias, targets, soft_cap, max_logits
    )
    return losses


def _chunk_loss(
    logits: torch.Tensor, target: torch.Tensor, soft_cap: float | None, needs_slope: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Losses of a chunk and their derivative with respect to its logits: (n, V), (n, 1) -> (n,), (n, V)."""
    dtype = logits.dtype
    logits = logits.to(torch.promote_types(dtype, torch.float32))
    if soft_cap is not None:
        logits = torch.tanh(logits / soft_cap) * soft_cap
    log_sum = logits.logsumexp(-1, keepdim=True)
    losses = (log_sum - logits.gather(-1, target))[:, 0]
    if not needs_slope:
        return losses, None
    slope = (logits - log_sum).exp_()
    slope.scatter_add_(-1, target, slope.new_full((), -1.0).expand_as(target))
    if soft_cap is not None:
        slope *= 1 - (logits / soft_cap).square()
    return losses, slope.to(dtype)


@functools.cache
def _fused_chunk_loss() -> Any:
    """``_chunk_loss`` compiled, to fuse its passes over logits; at first use, because the compiler imports slowly."""
    return torch.compile(_chunk_loss)


class _TokenCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        soft_cap: float | None,
        max_logits: int,
    ) -> torch.Tensor:
        size = max(1, max_logits // len(weight))
        losses, gradients = [], []
        chunk_loss = _fused_chunk_loss() if hidden_states.is_cuda and HAS_TRITON else _chunk_loss
        for hidden, target in zip(hidden_states.split(size), targets[:, None].split(size), strict=True):
            loss, slope = chunk_loss(F.linear(hidden, weight, bias), target, soft_cap, ctx.needs_input_grad[0])
            losses.append(loss)
            if slope is not None:
                gradients.append(slope @ weight)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return (grad_outputs[0][:, None] * gradients).to(gradients.dtype), None, None, None, None, None


def expected_cross_entropy(encoder_logits: torch.Tensor, cross_entropies: torch.Tensor) -> torch.Tensor:
    """E_q[CE], the exact sum over options: (N, K), (N, K) -> scalar, mean over positions, in nats (OLLM, eq. 4).

    The estimator ``exact``: sum_z q(z) CE(z).
    """
    return (encoder_logits.softmax(-1) * cross_entropies).sum(-1).mean()


def sample_options(encoder_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sample one option per position from q, as a one-hot row with a straight-through gradient: (N, K) -> (N, K).

    The estimator ``gumbel`` (Jang et al. 2017): z = argmax(log q + g) with Gumbel noise g is a sample of q, so
    CE(z) and its gradient in the decoder are unbiased for E_q[CE]. The encoder's gradient is that of
    softmax((log q + g) / temperature). It is biased, and less so at lower temperatures.
    """
    return F.gumbel_softmax(encoder_logits, tau=temperature, hard=True)


def kl_to_prior(encoder_logits: torch.Tensor, prior_logits: torch.Tensor | None = None) -> torch.Tensor:
    """KL(q || prior) = sum_z q(z) log(q(z) / prior(z)): (N, K) -> scalar, mean over positions, in nats.

    Args:
        encoder_logits: Logits of q, (N, K).
        prior_logits: (N, K). None is the uniform prior (OLLM, eq. 5), for which the KL is log K - H(q).
    """
    if prior_logits is None:
        prior_logits = torch.zeros_like(encoder_logits)
    log_q, log_prior = encoder_logits.log_softmax(-1), prior_logits.log_softmax(-1)
    return F.kl_div(log_prior, log_q, log_target=True, reduction="batchmean")


def policy_imitation_loss(policy_logits: torch.Tensor, encoder_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the policy against the encoder's distribution (OLLM, eq. 6): -sum_z q(z) log pi(z), in nats.

    The encoder gets no gradient: the policy follows the encoder, not the reverse.

    Args:
        policy_logits: (N, K).
        encoder_logits: (N, K).

    Returns:
        Scalar, mean over positions.
    """
    return F.cross_entropy(policy_logits, encoder_logits.detach().softmax(-1))


def policy_marginal_loss(policy_logits: torch.Tensor, cross_entropies: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of the policy's mixture of options: -log sum_z pi(z) p(x | h, z), in nats.

    The options get no gradient: only the policy learns, by weighting the options.

    Args:
        policy_logits: (N, K).
        cross_entropies: -log p(x | h, z), (N, K).

    Returns:
        Scalar, mean over positions.
    """
    return -(policy_logits.log_softmax(-1) - cross_entropies.detach()).logsumexp(-1).mean()


def steered_weight(weight: float, error: float, *, rate: float, bounds: tuple[float, float]) -> float:
    """The weight times exp(rate * error), the relative error clipped to [-1, 1] and the result to the bounds.

    This is a common rule for penalties that keep a quantity near a target.
    """
    low, high = bounds
    return max(low, min(high, weight * math.exp(rate * max(-1.0, min(1.0, error)))))


class AdaptiveKLWeight(nn.Module):
    """Weight of the KL term that keeps it near a target (OLLM, Sec. 2.3).

    The weight grows while the measured KL is above the target and shrinks while it is below, by `steered_weight`; the
    paper does not give its rule. Without a target the weight is constant. It is a buffer, so it is saved and resumed
    with the module.
    """

    weight: torch.Tensor

    def __init__(
        self,
        target: float | None,
        init: float,
        *,
        rate: float = 0.05,
        min_weight: float = 1e-4,
        max_weight: float = 10.0,
    ) -> None:
        super().__init__()
        self.target, self.rate, self.min_weight, self.max_weight = target, rate, min_weight, max_weight
        self.register_buffer("weight", torch.tensor(float(init)))

    def update(self, kl: float) -> float:
        """Update the weight by one step and return it.

        Args:
            kl: Mean over the batch of KL(q || prior), in nats; at least 0.

        Raises:
            UsageError: If ``kl`` is NaN or infinite; the weight does not change.
        """
        if not math.isfinite(kl):
            raise UsageError(f"kl={kl} is not finite; lower the learning rate or look for NaN in the backbone's output")
        if self.target is None:
            return float(self.weight)
        error, bounds = (kl - self.target) / self.target, (self.min_weight, self.max_weight)
        self.weight.fill_(steered_weight(float(self.weight), error, rate=self.rate, bounds=bounds))
        return float(self.weight)
