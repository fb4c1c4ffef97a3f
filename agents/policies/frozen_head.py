"""A control: a policy over the whole vocabulary on frozen hidden states.

Letters: M decisions of the episodes in row order, H hidden, V vocabulary.
"""

import torch

from ollm_rl.agents.policies.base import Evaluation, tempered
from ollm_rl.agents.policies.shift import ShiftedPolicy
from ollm_rl.agents.policies.vocabulary import VocabularyPolicy
from ollm_rl.decode.rollout import Rollout


class FrozenHeadPolicy(ShiftedPolicy, VocabularyPolicy):
    """pi = softmax(head(h'_t)) with the h' of `HiddenShift`: what `AnchoredPolicy` is without options."""

    def log_probs(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Those of the head at h'_t: (M, H) -> (M, V)."""
        return self._read(self.shift(hidden_states))

    def evaluate(self, rollout: Rollout, *, reference: bool = False) -> Evaluation:
        """Evaluate a rollout's decisions under the current weights; the reference is the backbone."""
        hidden = rollout.stored["hidden_states"][rollout.decisions]
        tokens = rollout.tokens[rollout.decisions][:, None]
        log_probs = self.log_probs(hidden)
        reference_log_probs = None
        if reference:
            with torch.no_grad():
                reference_log_probs = self._read(hidden).gather(1, tokens)[:, 0]
        entropies = -(log_probs.exp() * log_probs).sum(-1)
        values = self.value_head(hidden.float())[:, 0]
        return Evaluation(log_probs.gather(1, tokens)[:, 0], entropies, values, reference_log_probs)

    def _read(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(M, H) -> (M, V)."""
        logits: torch.Tensor = self.head(hidden_states.to(self.head.linear.weight.dtype))
        return tempered(logits.float().log_softmax(-1), self.temperature)
