"""What policies over the whole vocabulary share.

Letters: B rows, M decisions, H hidden, V vocabulary.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import nn

from ollm_rl.agents.policies.base import Choices, draw
from ollm_rl.backbones.chunks import in_chunks
from ollm_rl.decode.turns import Action


class VocabularyPolicy(nn.Module):
    """Base of the policies whose choices are all tokens, at every position."""

    reads_sequences: bool
    value_head: nn.Sequential

    @abstractmethod
    def log_probs(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of all tokens at h_t, in nats: (B, H) -> (B, V)."""

    @torch.no_grad()
    def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        """Choose a token; arguments and result are as in ``OptionPolicy.act``."""
        log_probs = self.log_probs(hidden_states)
        tokens = log_probs.argmax(-1) if uniforms is None else draw(log_probs.exp(), uniforms)
        return Action(
            tokens=tokens,
            log_probs=log_probs.gather(1, tokens[:, None])[:, 0],
            values=self.value_head(hidden_states.float())[:, 0],
            decisions=torch.ones_like(tokens, dtype=torch.bool),
            stored={} if self.reads_sequences else {"hidden_states": hidden_states},
        )

    @torch.no_grad()
    def choices(self, hidden_states: torch.Tensor) -> Choices:
        """The whole vocabulary at h_t, (B, H); C = V."""
        log_probs = self.log_probs(hidden_states)
        return Choices(torch.arange(log_probs.shape[1], device=log_probs.device).expand_as(log_probs), log_probs)


def token_statistics(
    log_probs_at: Callable[[torch.Tensor], torch.Tensor],
    hidden_states: torch.Tensor,
    tokens: torch.Tensor,
    *,
    vocab_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of a token and entropy, with gradient and without all logits at once, in nats: (M,) and (M,).

    Args:
        log_probs_at: Log-probabilities of all tokens at hidden states: (M, H) -> (M, V).
        hidden_states: (M, H).
        tokens: (M,).
        vocab_size: V.
    """

    def of_chunk(hidden_states: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs = log_probs_at(hidden_states)
        return log_probs.gather(1, tokens[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)

    chosen, entropies = in_chunks(of_chunk, hidden_states, tokens, vocab_size=vocab_size)
    return chosen, entropies
