"""Interface of a policy: it chooses tokens from h_t and re-evaluates a rollout at its decisions.

One rollout loop and one trainer serve all policies.

Letters: B rows, C choices per row, M decisions of the episodes in row order, H hidden.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from ollm_rl.decode.rollout import Rollout
from ollm_rl.decode.turns import Action
from ollm_rl.errors import UsageError
from ollm_rl.options.model import OptionModel
from ollm_rl.settings import shown


class Choices(NamedTuple):
    """The distinct tokens a policy can choose, C per row: token ids and log-probabilities in nats, both (B, C).

    Columns that repeat a token have log-probability minus infinity.
    """

    tokens: torch.Tensor
    log_probs: torch.Tensor


class Evaluation(NamedTuple):
    """Quantities at the decisions, with gradient, each (M,).

    Attributes:
        log_probs: Log-probabilities of the choices made, in nats.
        entropies: Entropies over tokens, in nats.
        values: Value estimates.
        reference: Log-probabilities of the same choices before training, without gradient; None unless requested.
    """

    log_probs: torch.Tensor
    entropies: torch.Tensor
    values: torch.Tensor
    reference: torch.Tensor | None


class Acts(Protocol):
    """What `evaluate` needs of a policy, so that any object of one's own can be evaluated.

    For example, the backbone's most probable token at every position::

        class Greedy:
            def __init__(self, backbone):
                self.backbone, self.head = backbone, OutputHead(backbone)

            def act(self, hidden_states, uniforms):
                return Action.of(self.head(hidden_states).argmax(-1))

    Attributes:
        backbone: The language model that decodes.
    """

    @property
    def backbone(self) -> PreTrainedModel:  # noqa: D102  # described in the class docstring
        ...

    def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        """Choose a token in every row; as in `Policy`."""
        ...


class Policy(Protocol):
    """What training, evaluation and search need of a policy; those in this folder implement it.

    A policy is an ``nn.Module`` whose trainable parameters are those with ``requires_grad``.

    Attributes:
        backbone: The language model that decodes.
        value_head: Value estimates of h_t: (B, H) in float32 -> (B, 1).
        reads_sequences: Whether ``evaluate`` reads prompts and whole completions. If not, it is given only decisions
            (``Rollout.at_decisions``).
        temperature: The policy that is sampled and evaluated has the token probabilities to the power of 1 /
            temperature, normalised; so probability ratios are those of the distribution that was sampled.
    """

    reads_sequences: bool
    temperature: float

    @property
    def backbone(self) -> PreTrainedModel:  # noqa: D102  # described in the class docstring
        ...

    @property
    def value_head(self) -> nn.Module:  # noqa: D102
        ...

    def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        """Choose a token in every row.

        Args:
            hidden_states: h_t, (B, H).
            uniforms: One number in [0, 1) per row, (B,), to sample with; None decodes greedily.
        """
        ...

    def choices(self, hidden_states: torch.Tensor) -> Choices:
        """The tokens that the policy can choose at h_t, (B, H)."""
        ...

    def evaluate(self, rollout: Rollout, *, reference: bool = False) -> Evaluation:
        """Evaluate a rollout's decisions under the current weights and, with ``reference``, those before training."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As in any ``nn.Module``."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As in any ``nn.Module``."""
        ...


def tempered(log_probs: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probabilities of distinct tokens at a temperature: (..., C) -> (..., C); minus infinity stays."""
    if temperature == 1:
        return log_probs
    # Tokens that are never written keep a finite number, so that a probability of 0 times its logarithm stays 0.
    scaled = (log_probs / temperature).clamp(min=torch.finfo(log_probs.dtype).min / 2)
    return scaled.masked_fill(log_probs == -torch.inf, -torch.inf).log_softmax(-1)


def draw(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Sample a column per row by inverting the cumulative distribution: (B, C), (B,) in [0, 1) -> (B,).

    Each row has its own number, so its sample does not depend on the other rows.
    """
    cumulative = probs.cumsum(-1)
    columns = torch.searchsorted(cumulative, (uniforms.to(probs) * cumulative[:, -1])[:, None], right=True)
    return columns[:, 0].clamp(max=probs.shape[-1] - 1)


def as_option_model(model: Any) -> OptionModel:
    """The model itself, if it is an option model.

    Raises:
        UsageError: If it is something else, such as a folder.
    """
    if not isinstance(model, OptionModel):
        raise UsageError(
            f"model={shown(model)} is no option model; give one, such as OptionModel.from_pretrained returns"
        )
    return model
