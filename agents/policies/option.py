"""The policy over options on frozen hidden states.

Letters: B rows, M decisions of the episodes in row order, H hidden, K options.
"""

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from ollm_rl.agents.policies.base import Choices, Evaluation, as_option_model, draw
from ollm_rl.decode.rollout import Rollout
from ollm_rl.decode.turns import Action
from ollm_rl.options.adapter import mlp
from ollm_rl.options.decisions import decision_log_prob, is_first, token_log_probs
from ollm_rl.options.model import OptionModel

VALUE_WIDTH = 64


class OptionPolicy(nn.Module):
    """pi(z | h_t) over K options, initialised from the SFT policy, with a value head.

    The backbone and the decoder are frozen, and an update never runs them. The log-probability of a choice is that of
    its token, summed over the options that lead to it. With ``plain`` it is that of the option itself: the expected
    gradient is the same, its variance higher.
    """

    reads_sequences = False
    temperature = 1.0

    def __init__(self, model: OptionModel, *, plain: bool = False) -> None:
        super().__init__()
        model = as_option_model(model)
        self.plain = plain
        self.policy = copy.deepcopy(model.adapter.policy).requires_grad_(True)
        self.value_head = mlp(model.hidden_size, VALUE_WIDTH, 1).to(model.backbone.device)
        self._model = [model]  # in a list, so that nn.Module does not register its parameters

    @property
    def model(self) -> OptionModel:
        """The frozen option model; its own policy is the one that SFT trained."""
        return self._model[0]

    @property
    def backbone(self) -> PreTrainedModel:
        """The frozen backbone that decodes."""
        return self._model[0].backbone

    @torch.no_grad()
    def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        """Choose an option and take its token.

        Args:
            hidden_states: h_t, (B, H).
            uniforms: One number in [0, 1) per row, (B,), to sample with. None decodes greedily: the token whose
                probability, summed over its options, is highest.
        """
        option_tokens = self._model[0].option_tokens(hidden_states)
        option_logits = self.policy(hidden_states.float())
        by_token = self._token_log_probs(option_logits, option_tokens)
        if uniforms is None:
            options = by_token.argmax(-1)
        elif self.temperature == 1:
            options = draw(option_logits.softmax(-1), uniforms)
        else:
            options = draw(by_token.exp() * is_first(option_tokens), uniforms)
        log_probs = option_logits.log_softmax(-1) if self.plain else by_token
        return Action(
            tokens=option_tokens.gather(1, options[:, None])[:, 0],
            log_probs=log_probs.gather(1, options[:, None])[:, 0],
            values=self.value_head(hidden_states.float())[:, 0],
            decisions=(option_tokens != option_tokens[:, :1]).any(-1),
            stored={"hidden_states": hidden_states, "option_tokens": option_tokens, "options": options},
        )

    @torch.no_grad()
    def choices(self, hidden_states: torch.Tensor) -> Choices:
        """The options' tokens at h_t, (B, H), with probabilities summed over the options of a token; C = K."""
        tokens = self._model[0].option_tokens(hidden_states)
        log_probs = self._token_log_probs(self.policy(hidden_states.float()), tokens)
        return Choices(tokens, log_probs.masked_fill(~is_first(tokens), -torch.inf))

    @torch.no_grad()
    def option_probs(self, hidden_states: torch.Tensor, option_tokens: torch.Tensor) -> torch.Tensor:
        """pi(z | h): (..., H), (..., K) -> (..., K); the tokens of the options are not needed."""
        probs: torch.Tensor = self.policy(hidden_states.float()).softmax(-1)
        return probs

    def evaluate(self, rollout: Rollout, *, reference: bool = False) -> Evaluation:
        """Evaluate a rollout's decisions under the current weights; the reference is the SFT policy."""
        names = ("hidden_states", "option_tokens", "options")
        hidden, option_tokens, options = (rollout.at_places(rollout.stored[name]) for name in names)
        hidden = hidden.float()
        reference_log_probs = None
        if reference:
            with torch.no_grad():
                logits = self._model[0].adapter.policy(hidden)
                reference_log_probs = self._choice_log_probs(logits, option_tokens, options)
        option_logits = self.policy(hidden)
        chosen = self._choice_log_probs(option_logits, option_tokens, options)
        if self.temperature == 1:
            entropies = -(option_logits.softmax(-1) * token_log_probs(option_logits, option_tokens)).sum(-1)
        else:
            by_token = self._token_log_probs(option_logits, option_tokens)
            entropies = -(by_token.exp() * by_token * is_first(option_tokens)).sum(-1)
        return Evaluation(chosen, entropies, self.value_head(hidden)[:, 0], reference_log_probs)

    def _choice_log_probs(
        self, option_logits: torch.Tensor, option_tokens: torch.Tensor, options: torch.Tensor
    ) -> torch.Tensor:
        """Log-probabilities of the choices: (M, K), (M, K), (M,) -> (M,)."""
        log_probs = option_logits.log_softmax(-1)
        if self.plain:
            return log_probs.gather(1, options[:, None])[:, 0]
        if self.temperature != 1:
            return self._token_log_probs(option_logits, option_tokens).gather(1, options[:, None])[:, 0]
        return decision_log_prob(log_probs, option_tokens, options)

    def _token_log_probs(self, option_logits: torch.Tensor, option_tokens: torch.Tensor) -> torch.Tensor:
        """Log-probability of each option's token at the temperature: (M, K), (M, K) -> (M, K)."""
        by_token = token_log_probs(option_logits, option_tokens)
        if self.temperature == 1:
            return by_token
        scaled = by_token / self.temperature
        return scaled - scaled.masked_fill(~is_first(option_tokens), -torch.inf).logsumexp(-1, keepdim=True)
