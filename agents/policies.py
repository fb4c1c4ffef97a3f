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


class Evaluation(NamedTuple):
    """Log-probabilities of the chosen tokens, entropies (both in nats) and values, with gradient, each (M,)."""

    log_probs: torch.Tensor
    entropies: torch.Tensor
    values: torch.Tensor


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

    The backbone and the decoder stay as they are: an update never runs them.
    """

    def __init__(self, model: OptionModel) -> None:
        super().__init__()
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
        log_probs = token_log_probs(option_logits, option_tokens)
        options = log_probs.argmax(-1) if uniforms is None else draw(option_logits.softmax(-1), uniforms)
        return Action(
            tokens=option_tokens.gather(1, options[:, None])[:, 0],
            log_probs=log_probs.gather(1, options[:, None])[:, 0],
            values=self.value_head(hidden_states.float())[:, 0],
            decisions=(option_tokens != option_tokens[:, :1]).any(-1),
            stored={"hidden_states": hidden_states, "option_tokens": option_tokens},
        )

    def evaluate(self, rollout: "Rollout") -> Evaluation:
        """Judge a rollout's decisions under the weights of now."""
        hidden = rollout.stored["hidden_states"][rollout.decisions].float()
        option_tokens = rollout.stored["option_tokens"][rollout.decisions]
        tokens = rollout.tokens[rollout.decisions]
        log_probs = self.policy(hidden).log_softmax(-1)
        chosen = log_probs.masked_fill(option_tokens != tokens[:, None], -torch.inf).logsumexp(-1)
        entropies = -(log_probs.exp() * token_log_probs(log_probs, option_tokens)).sum(-1)
        return Evaluation(chosen, entropies, self.value_head(hidden)[:, 0])


class TokenPolicy(nn.Module):
    """The vocabulary baseline: a LoRA on the backbone's linear layers, in place, with a value head on h_t.

    The value head reads h_t without a gradient into the LoRA, as the option policy's does by construction.

    Args:
        backbone: Gets the LoRA; frozen otherwise.
        rank: Of the LoRA; 0 adds none (the backbone as it is, for evaluation).
        micro_batch: Sequences of one forward pass in ``evaluate``.
    """

    def __init__(self, backbone: PreTrainedModel, *, rank: int) -> None:
        super().__init__()
        backbone.requires_grad_(False)
        # For its output head alone; the smallest plug-in, since the default one does not fit every backbone.
        self.head = OptionModel(backbone, OptionConfig(num_options=2, width=1)).lm_logits
        if rank:
            backbone.add_adapter(lora_config(rank))
        self.backbone = backbone
        size = backbone.config.get_text_config().hidden_size
        self.value_head = mlp(size, VALUE_WIDTH, 1).to(backbone.device)

    @torch.no_grad()
    def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        """Choose a token; arguments and result as ``OptionPolicy.act``."""
        log_probs = self.head(hidden_states).float().log_softmax(-1)
        tokens = log_probs.argmax(-1) if uniforms is None else draw(log_probs.exp(), uniforms)
        return Action(
            tokens=tokens,
            log_probs=log_probs.gather(1, tokens[:, None])[:, 0],
            values=self.value_head(hidden_states.float())[:, 0],
            decisions=torch.ones_like(tokens, dtype=torch.bool),
        )

    def evaluate(self, rollout: "Rollout") -> Evaluation:
        """Judge a rollout's decisions under the weights of now: one forward pass over the sequences."""
        input_ids, attention_mask, where = rollout.sequences()
        output = self.backbone.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        hidden = output.last_hidden_state.gather(1, where[..., None].expand(-1, -1, output.last_hidden_state.shape[-1]))
        hidden = hidden[rollout.decisions]
        log_probs = self.head(hidden).float().log_softmax(-1)
        chosen = log_probs.gather(1, rollout.tokens[rollout.decisions][:, None])[:, 0]
        entropies = -(log_probs.exp() * log_probs).sum(-1)
        return Evaluation(chosen, entropies, self.value_head(hidden.detach().float())[:, 0])
