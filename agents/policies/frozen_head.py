"""A control: a policy over the whole vocabulary on frozen hidden states.

Letters: M decisions of the episodes in row order, H hidden, V vocabulary.
"""

import torch

from ollm_rl.agents.policies.base import Evaluation, tempered
from ollm_rl.agents.policies.shift import ShiftedPolicy
from ollm_rl.agents.policies.vocabulary import VocabularyPolicy, token_statistics
from ollm_rl.decode.rollout import Rollout


class FrozenHeadPolicy(ShiftedPolicy, VocabularyPolicy):
    """pi = softmax(head(h'_t)) with the h' of `HiddenShift`: what `AnchoredPolicy` is without options."""

    def log_probs(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Those of the head at h'_t: (M, H) -> (M, V)."""
        return self._read(self.shift(hidden_states))

    def evaluate(self, rollout: Rollout, *, reference: bool = False) -> Evaluation:
        """Evaluate a rollout's decisions under the current weights; the reference is the backbone."""
        hidden = rollout.at_places(rollout.stored["hidden_states"])
        log_probs, entropies = self._statistics(self.shift(hidden), rollout)
        reference_log_probs = None
        if reference:
            with torch.no_grad():
                reference_log_probs, _ = self._statistics(hidden, rollout)
        values = self.value_head(hidden.float())[:, 0]
        return Evaluation(log_probs, entropies, values, reference_log_probs)

    def _statistics(self, hidden_states: torch.Tensor, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the decisions' tokens at h'_t, and entropies: (M, H) -> (M,) and (M,)."""
        tokens = rollout.at_places(rollout.tokens)
        return token_statistics(self._read, hidden_states, tokens, vocab_size=self.head.vocab_size)

    def _read(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(M, H) -> (M, V)."""
        logits: torch.Tensor = self.head(hidden_states.to(self.head.linear.weight.dtype))
        return tempered(logits.float().log_softmax(-1), self.temperature)
