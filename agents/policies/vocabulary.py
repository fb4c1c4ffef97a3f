"""What policies over the whole vocabulary share.

Letters: B rows, H hidden, V vocabulary.
"""

from abc import abstractmethod

import torch
from torch import nn

from ollm_rl.agents.policies.base import Choices, draw
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
