"""A control: a policy over the whole vocabulary on frozen hidden states.

Letters: B rows, M decisions of the episodes in row order, H hidden, V vocabulary.
"""

import torch

from ollm_rl.agents.policies.base import Choices, Evaluation, draw, tempered
from ollm_rl.agents.policies.shift import ShiftedPolicy
from ollm_rl.decode.rollout import Rollout
from ollm_rl.decode.turns import Action


class FrozenHeadPolicy(ShiftedPolicy):
    """pi = softmax(head(h'_t)) with the h' of `HiddenShift`: what `AnchoredPolicy` is without options."""

    @torch.no_grad()
    def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        """Choose a token; arguments are as in ``OptionPolicy.act``."""
        log_probs = self._log_probs(self.shift(hidden_states))
        tokens = log_probs.argmax(-1) if uniforms is None else draw(log_probs.exp(), uniforms)
        return Action(
            tokens=tokens,
            log_probs=log_probs.gather(1, tokens[:, None])[:, 0],
            values=self.value_head(hidden_states.float())[:, 0],
            decisions=torch.ones_like(tokens, dtype=torch.bool),
            stored={"hidden_states": hidden_states},
        )

    @torch.no_grad()
    def choices(self, hidden_states: torch.Tensor) -> Choices:
        """The whole vocabulary at h_t, (B, H); C = V."""
        log_probs = self._log_probs(self.shift(hidden_states))
        return Choices(torch.arange(log_probs.shape[1], device=log_probs.device).expand_as(log_probs), log_probs)

    def evaluate(self, rollout: Rollout, *, reference: bool = False) -> Evaluation:
        """Evaluate a rollout's decisions under the current weights; the reference is the backbone."""
        hidden = rollout.stored["hidden_states"][rollout.decisions]
        tokens = rollout.tokens[rollout.decisions][:, None]
        log_probs = self._log_probs(self.shift(hidden))
        reference_log_probs = None
        if reference:
            with torch.no_grad():
                reference_log_probs = self._log_probs(hidden).gather(1, tokens)[:, 0]
        entropies = -(log_probs.exp() * log_probs).sum(-1)
        values = self.value_head(hidden.float())[:, 0]
        return Evaluation(log_probs.gather(1, tokens)[:, 0], entropies, values, reference_log_probs)

    def _log_probs(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(M, H) -> (M, V)."""
        logits: torch.Tensor = self.head(hidden_states.to(self.head.linear.weight.dtype))
        return tempered(logits.float().log_softmax(-1), self.temperature)
