"""Policies over a few offered tokens that start as the backbone restricted to these.

    pi(x | h_t) = softmax of the output head at h'_t over the offered tokens x;  h'_t = h_t before training

h' is that of `HiddenShift`. So training starts at the backbone's own behaviour, whatever the options were trained for.

Letters: B rows, C offered tokens per row, M decisions of the episodes in row order, H hidden, K options.
"""

from abc import abstractmethod

import torch
from transformers import PreTrainedModel

from ollm_rl.agents.policies.base import Choices, Evaluation, as_option_model, draw, tempered
from ollm_rl.agents.policies.shift import ShiftedPolicy
from ollm_rl.decode.rollout import Rollout
from ollm_rl.decode.turns import Action
from ollm_rl.options.decisions import is_first, same_token
from ollm_rl.options.model import OptionModel


class RestrictedPolicy(ShiftedPolicy):
    """A policy over the distinct tokens that ``offer`` returns."""

    @abstractmethod
    def offer(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The tokens to choose among at h_t, which may repeat: (B, H) -> (B, C)."""

    @torch.no_grad()
    def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        """Choose an offered token; arguments are as in ``OptionPolicy.act``."""
        tokens = self.offer(hidden_states)
        log_probs = self._log_probs(self.shift(hidden_states), tokens)
        chosen = log_probs.argmax(-1) if uniforms is None else draw(log_probs.exp(), uniforms)
        return Action(
            tokens=tokens.gather(1, chosen[:, None])[:, 0],
            log_probs=log_probs.gather(1, chosen[:, None])[:, 0],
            values=self.value_head(hidden_states.float())[:, 0],
            decisions=(tokens != tokens[:, :1]).any(-1),
            stored={"hidden_states": hidden_states, "option_tokens": tokens, "options": chosen},
        )

    @torch.no_grad()
    def choices(self, hidden_states: torch.Tensor) -> Choices:
        """The offered tokens at h_t, (B, H)."""
        tokens = self.offer(hidden_states)
        return Choices(tokens, self._log_probs(self.shift(hidden_states), tokens))

    def evaluate(self, rollout: Rollout, *, reference: bool = False) -> Evaluation:
        """Evaluate a rollout's decisions under the current weights; the reference is the restricted backbone."""
        names = ("hidden_states", "option_tokens", "options")
        hidden, tokens, chosen = (rollout.at_places(rollout.stored[name]) for name in names)
        log_probs = self._log_probs(self.shift(hidden), tokens)
        entropies = -(log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0)).sum(-1)
        reference_log_probs = None
        if reference:
            with torch.no_grad():
                reference_log_probs = self._log_probs(hidden, tokens).gather(1, chosen[:, None])[:, 0]
        values = self.value_head(hidden.float())[:, 0]
        return Evaluation(log_probs.gather(1, chosen[:, None])[:, 0], entropies, values, reference_log_probs)

    def _log_probs(self, hidden_states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(M, H), (M, C) -> (M, C); repetitions of a token get minus infinity."""
        logits = self.head.at(hidden_states, tokens).masked_fill(~is_first(tokens), -torch.inf)
        return tempered(logits.log_softmax(-1), self.temperature)


class AnchoredPolicy(RestrictedPolicy):
    """A policy over the distinct tokens that the options of a model offer."""

    def __init__(self, model: OptionModel) -> None:
        super().__init__(as_option_model(model).backbone)
        self._model = [model]

    @property
    def model(self) -> OptionModel:
        """The frozen option model."""
        return self._model[0]

    def offer(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The options' tokens, (B, K)."""
        return self._model[0].option_tokens(hidden_states)

    @torch.no_grad()
    def option_probs(self, hidden_states: torch.Tensor, option_tokens: torch.Tensor) -> torch.Tensor:
        """Probability of every option, those of a token being equally probable: (..., H), (..., K) -> (..., K)."""
        same = same_token(option_tokens).float()
        by_token = self._log_probs(self.shift(hidden_states), option_tokens).exp()
        return (same @ by_token[..., None])[..., 0] / same.sum(-1)


class TopTokensPolicy(RestrictedPolicy):
    """A control without options: a policy over the backbone's most probable tokens."""

    def __init__(self, backbone: PreTrainedModel, count: int) -> None:
        super().__init__(backbone)
        self.count = count

    def offer(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The most probable tokens, (B, count)."""
        return self.head(hidden_states).topk(self.count, -1).indices
