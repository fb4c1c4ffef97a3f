"""The policy over tokens: a LoRA on the backbone.

Letters: M decisions of the episodes in row order, H hidden, V vocabulary.
"""

import torch
from transformers import PreTrainedModel

from ollm_rl.agents.policies.base import Evaluation, tempered
from ollm_rl.agents.policies.option import VALUE_WIDTH
from ollm_rl.agents.policies.recorded_passes import RecordedPasses
from ollm_rl.agents.policies.vocabulary import VocabularyPolicy, token_statistics
from ollm_rl.backbones.loading import as_backbone
from ollm_rl.backbones.lora import add_lora, without_lora
from ollm_rl.backbones.lora_products import LoraProducts
from ollm_rl.backbones.output_head import OutputHead
from ollm_rl.decode.rollout import Rollout
from ollm_rl.options.adapter import mlp


class TokenPolicy(VocabularyPolicy):
    """The vocabulary baseline: a LoRA added in place to the backbone's linear layers, and a value head on h_t.

    The value head sends no gradient into the LoRA. In the option policy this holds by construction.

    Args:
        backbone: Receives the LoRA; its own weights are frozen.
        rank: Rank of the LoRA; 0 adds none (the unchanged backbone, for evaluation).
    """

    reads_sequences = True
    temperature = 1.0

    def __init__(self, backbone: PreTrainedModel, *, rank: int) -> None:
        super().__init__()
        as_backbone(backbone).requires_grad_(False)
        self.head = OutputHead(backbone)
        if rank:
            add_lora(backbone, rank)
            for weight in backbone.parameters():
                if weight.requires_grad:  # in bfloat16 small updates would be lost
                    weight.data = weight.data.float()
        self.backbone, self.lora = backbone, LoraProducts(backbone)
        self._passes: LoraProducts | RecordedPasses = self.lora
        self.value_head = mlp(self.head.hidden_size, VALUE_WIDTH, 1).to(backbone.device)

    def record_passes(self, tokens: int | None) -> None:
        """Compute ``evaluate`` by `RecordedPasses` of at most ``tokens`` tokens from now on; None records no more.

        On CUDA only.
        """
        self._passes = self.lora  # frees the memory of former recordings
        if tokens is not None:
            self._passes = RecordedPasses(self.lora, tokens)

    def evaluate(self, rollout: Rollout, *, reference: bool = False) -> Evaluation:
        """Evaluate a rollout's decisions under the current weights, by a forward pass over the sequences.

        The reference is the backbone with the LoRA switched off. It takes a second pass, but no second model.
        """
        reference_log_probs, (input_ids, positions) = None, rollout.sequences()

        def at_decisions(passes: LoraProducts | RecordedPasses) -> torch.Tensor:
            """h_t at the decisions, (M, H)."""
            # Without a mask attention is faster. What follows a row's end changes nothing before it.
            hidden = passes.hidden_states(input_ids)
            return rollout.at_places(hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1])))

        if reference:
            with torch.no_grad(), without_lora(self.backbone):
                reference_log_probs, _ = self._statistics(at_decisions(self.lora), rollout)
        hidden = at_decisions(self._passes)
        log_probs, entropies = self._statistics(hidden, rollout)
        values = self.value_head(hidden.detach().float())[:, 0]
        return Evaluation(log_probs, entropies, values, reference_log_probs)

    def _statistics(self, hidden_states: torch.Tensor, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the decisions' tokens, and entropies: (M, H) -> (M,) and (M,)."""
        tokens = rollout.at_places(rollout.tokens)
        return token_statistics(self.log_probs, hidden_states, tokens, vocab_size=self.head.vocab_size)

    def log_probs(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of all tokens: (M, H) -> (M, V)."""
        return tempered(self.head(hidden_states).float().log_softmax(-1), self.temperature)
