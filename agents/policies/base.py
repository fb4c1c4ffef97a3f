"""What a policy is: it acts on h_t and judges a rollout again at its decisions.

One rollout loop and one trainer serve all policies.

Letters: B rows, C choices of a row, M decisions of the episodes row by row, H hidden.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from ollm_rl.decode.rollout import Rollout
from ollm_rl.decode.turns import Action


class Choices(NamedTuple):
    """The tokens a policy can lead to, C a row, each once: token ids and log-probabilities in nats, both (B, C).

    Columns that say a token again have log-probability minus infinity.
    """

    tokens: torch.Tensor
    log_probs: torch.Tensor


class Evaluation(NamedTuple):
    """Of decisions, with gradient, each (M,).

    Attributes:
        log_probs: Of the choices made, in nats.
        entropies: Over tokens, in nats.
        values: Value estimates.
        reference: Log-probabilities of the same choices before training, without gradient; where asked for.
    """

    log_probs: torch.Tensor
    entropies: torch.Tensor
    values: torch.Tensor
    reference: torch.Tensor | None


class Policy(Protocol):
    """What training, evaluation and search ask of a policy; ``OptionPolicy`` and ``TokenPolicy`` are two.

    A policy is an ``nn.Module`` whose trainable parameters are those with ``requires_grad``.

    Attributes:
        backbone: The language model that decodes.
        value_head: Value estimates of h_t: (B, H) in float32 -> (B, 1).
    """

    @property
    def backbone(self) -> PreTrainedModel:  # noqa: D102  # the class says it
        ...

    @property
    def value_head(self) -> nn.Module:  # noqa: D102
        ...

    def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        """Choose a token in every row.

        Args:
            hidden_states: h_t, (B, H).
            uniforms: One number in [0, 1) a row, (B,), to sample with; None decodes greedily.
        """
        ...

    def choices(self, hidden_states: torch.Tensor) -> Choices:
        """The tokens that the policy can lead to at h_t, (B, H)."""
        ...

    def evaluate(self, rollout: Rollout, *, reference: bool = False) -> Evaluation:
        """Judge a rollout's decisions under the weights of now, and of before training where ``reference`` is set."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of any ``nn.Module``."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As of any ``nn.Module``."""
        ...


def draw(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Sample a column per row by the inverse of the distribution function: (B, C), (B,) in [0, 1) -> (B,).

    One number a row, given from outside, makes a row's sample independent of the rows beside it.
    """
    cumulative = probs.cumsum(-1)
    found = torch.searchsorted(cumulative, (uniforms.to(probs) * cumulative[:, -1])[:, None], right=True)
    return found[:, 0].clamp(max=probs.shape[-1] - 1)
