"""The two policies: over options on frozen hidden states, and over tokens with a LoRA on the backbone.

Both act on h_t and judge a rollout again at its decisions, so one rollout loop and one trainer serve them.

Letters: B rows, N episodes, T tokens, M decisions of the episodes row by row, H hidden, K options, V vocabulary.
"""

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from ollm_rl.adapter import mlp
from ollm_rl.config import OptionConfig
from ollm_rl.lora import lora_config
from ollm_rl.model import OptionModel

if TYPE_CHECKING:
    from ollm_rl.agents.rollout import Rollout

VALUE_WIDTH = 64


@dataclass
class Action:
    """One token a row: what was chosen and what the update needs.

    Attributes:
        tokens: (B,).
        log_probs: Log-probability of the token, (B,), in nats.
        values: Value estimates, (B,).
        decisions: True where the policy had a choice, (B,).
        stored: Further tensors (B, ...) that the rollout keeps for ``evaluate``.
    """

    tokens: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    decisions: torch.Tensor
    stored: dict[str, torch.Tensor] = field(default_factory=dict)


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


def draw(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Sample a column per row by the inverse of the distribution function: (B, C), (B,) in [0, 1) -> (B,).

    One number a row, given from outside, makes a row's sample independent of the rows beside it.
    """
    cumulative = probs.cumsum(-1)
    found = torch.searchsorted(cumulative, (uniforms.to(probs) * cumulative[:, -1])[:, None], right=True)
    return found[:, 0].clamp(max=probs.shape[-1] - 1)


def token_log_probs(option_logits: torch.Tensor, option_tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of each option's token, options that lead to the same token added up: (..., K) -> (..., K).

    Options with one token are one decision; its log-probability is the sum's, which leaves the expectation of the
    policy gradient as it is and lowers its variance.
    """
    log_probs = option_logits.log_softmax(-1)
    same = option_tokens[..., :, None] == option_tokens[..., None, :]
    return log_probs[..., None, :].masked_fill(~same, -torch.inf).logsumexp(-1)


class OptionPolicy(nn.Module):
    """pi(z | h_t) over K options, started from the policy that SFT trained, with a value head.

    The backbone and the decoder stay as they are: an update never runs them. A choice is a token, whose options'
    probabilities are added up; with ``plain`` it is the option itself, which leaves the gradient's expectation as it is
    and raises its variance.
    """

    def __init__(self, model: OptionModel, *, plain: bool = False) -> None:
        super().__init__()
        self.plain = plain
        self.policy = copy.deepcopy(model.adapter.policy).requires_grad_(True)
        self.value_head = mlp(model.hidden_size, VALUE_WIDTH, 1).to(model.backbone.device)
        self._model = [model]  # in a list, so that its parameters are not this policy's

    @property
    def model(self) -> OptionModel:
        """The option model, frozen; its own policy is the one that SFT trained."""
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
            uniforms: One number in [0, 1) a row, (B,), to sample with; None decodes greedily: the most probable
                token, the options' probabilities added up by token.
        """
        option_tokens = self._model[0].option_tokens(hidden_states)
        option_logits = self.policy(hidden_states.float())
        by_token = token_log_probs(option_logits, option_tokens)
        options = by_token.argmax(-1) if uniforms is None else draw(option_logits.softmax(-1), uniforms)
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
        """The options' tokens at h_t, (B, H), with the probabilities of options of one token added up; C = K."""
        tokens = self._model[0].option_tokens(hidden_states)
        log_probs = token_log_probs(self.policy(hidden_states.float()), tokens)
        first = (tokens[:, :, None] == tokens[:, None, :]).int().argmax(-1)
        repeated = first != torch.arange(tokens.shape[1], device=tokens.device)
        return Choices(tokens, log_probs.masked_fill(repeated, -torch.inf))

    def evaluate(self, rollout: "Rollout", *, reference: bool = False) -> Evaluation:
        """Judge a rollout's decisions under the weights of now; the reference is the policy that SFT left."""
        hidden = rollout.stored["hidden_states"][rollout.decisions].float()
        option_tokens, options = (rollout.stored[name][rollout.decisions] for name in ("option_tokens", "options"))
        before = None
        if reference:
            with torch.no_grad():
                before = self._of_choice(self._model[0].adapter.policy(hidden), option_tokens, options)
        option_logits = self.policy(hidden)
        chosen = self._of_choice(option_logits, option_tokens, options)
        entropies = -(option_logits.softmax(-1) * token_log_probs(option_logits, option_tokens)).sum(-1)
        return Evaluation(chosen, entropies, self.value_head(hidden)[:, 0], before)

    def _of_choice(
        self, option_logits: torch.Tensor, option_tokens: torch.Tensor, options: torch.Tensor
    ) -> torch.Tensor:
        """Log-probabilities of what was chosen: (M, K), (M, K), (M,) -> (M,)."""
        log_probs = option_logits.log_softmax(-1)
        if self.plain:
            return log_probs.gather(1, options[:, None])[:, 0]
        tokens = option_tokens.gather(1, options[:, None])
        return log_probs.masked_fill(option_tokens != tokens, -torch.inf).logsumexp(-1)


class TokenPolicy(nn.Module):
    """The vocabulary baseline: a LoRA on the backbone's linear layers, in place, with a value head on h_t.

    The value head reads h_t without a gradient into the LoRA, as the option policy's does by construction.

    Args:
        backbone: Gets the LoRA; frozen otherwise.
        rank: Of the LoRA; 0 adds none (the backbone as it is, for evaluation).
    """

    def __init__(self, backbone: PreTrainedModel, *, rank: int) -> None:
        super().__init__()
        backbone.requires_grad_(False)
        # For its output head alone; the smallest plug-in, since the default one does not fit every backbone.
        self.head = OptionModel(backbone, OptionConfig(num_options=2, width=1)).lm_logits
        if rank:
            backbone.add_adapter(lora_config(rank))
            for weight in backbone.parameters():
                if weight.requires_grad:  # in bfloat16 small steps would be lost
                    weight.data = weight.data.float()
        self.backbone = backbone
        size = backbone.config.get_text_config().hidden_size
        self.value_head = mlp(size, VALUE_WIDTH, 1).to(backbone.device)

    @torch.no_grad()
    def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        """Choose a token; arguments and result as ``OptionPolicy.act``."""
        log_probs = self._log_probs(hidden_states)
        tokens = log_probs.argmax(-1) if uniforms is None else draw(log_probs.exp(), uniforms)
        return Action(
            tokens=tokens,
            log_probs=log_probs.gather(1, tokens[:, None])[:, 0],
            values=self.value_head(hidden_states.float())[:, 0],
            decisions=torch.ones_like(tokens, dtype=torch.bool),
        )

    @torch.no_grad()
    def choices(self, hidden_states: torch.Tensor) -> Choices:
        """The whole vocabulary at h_t, (B, H); C = V."""
        log_probs = self._log_probs(hidden_states)
        return Choices(torch.arange(log_probs.shape[1], device=log_probs.device).expand_as(log_probs), log_probs)

    def evaluate(self, rollout: "Rollout", *, reference: bool = False) -> Evaluation:
        """Judge a rollout's decisions under the weights of now, by a forward pass over the sequences.

        The reference is the backbone with the LoRA switched off: a second pass, but no second model.
        """
        tokens = rollout.tokens[rollout.decisions][:, None]
        before = None
        if reference:
            self.backbone.disable_adapters()
            try:
                with torch.no_grad():
                    before = self._log_probs(self._hidden_states(rollout)).gather(1, tokens)[:, 0]
            finally:
                self.backbone.enable_adapters()
        hidden = self._hidden_states(rollout)
        log_probs = self._log_probs(hidden)
        entropies = -(log_probs.exp() * log_probs).sum(-1)
        values = self.value_head(hidden.detach().float())[:, 0]
        return Evaluation(log_probs.gather(1, tokens)[:, 0], entropies, values, before)

    def _hidden_states(self, rollout: "Rollout") -> torch.Tensor:
        """h_t at the decisions, (M, H)."""
        input_ids, attention_mask, where = rollout.sequences()
        output = self.backbone.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        hidden = output.last_hidden_state.gather(1, where[..., None].expand(-1, -1, output.last_hidden_state.shape[-1]))
        decided: torch.Tensor = hidden[rollout.decisions]
        return decided

    def _log_probs(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Of all tokens, (M, V)."""
        return self.head(hidden_states).float().log_softmax(-1)
