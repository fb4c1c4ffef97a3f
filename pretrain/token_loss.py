"""The loss of backbone and LoRA: the mean cross-entropy of the completions' tokens, without all logits at once.

Letters: B batch, T tokens, N counted positions, H hidden, V vocabulary.
"""

from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from ollm_rl.backbones.chunks import in_chunks
from ollm_rl.backbones.output_head import OutputHead, last_hidden_states
from ollm_rl.options.model import IGNORED


def chunk_loss(backbone: PreTrainedModel) -> None:
    """Replace the loss that a model computes from ``labels``, in the model itself, so that wrappers use it too.

    Its own loss takes logits of all positions. Here those of prompts and padding are left out, and the others are made
    chunk by chunk (`in_chunks`). A mixture of experts that adds a loss of its router keeps its own.
    """
    head, whole = OutputHead(backbone), backbone.forward

    def losses_of(hidden_states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor]:
        """(n, H), (n,) -> (n,)."""
        return (F.cross_entropy(head.logits(hidden_states).float(), targets, reduction="none"),)

    def forward(
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **arguments: Any,
    ) -> Any:
        """Loss of token ids and labels, (B, T); of several passes for one step, the part of this one."""
        if labels is None or input_ids is None or getattr(backbone.config, "output_router_logits", False):
            arguments |= {"labels": labels, "num_items_in_batch": num_items_in_batch}
            given = {name: value for name, value in arguments.items() if value is not None}
            return whole(input_ids=input_ids, attention_mask=attention_mask, **given)
        counted = labels[:, 1:] != IGNORED
        hidden = last_hidden_states(backbone, input_ids, attention_mask)[:, :-1][counted]
        (losses,) = in_chunks(losses_of, hidden, labels[:, 1:][counted], vocab_size=head.vocab_size)
        count = counted.sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutput(loss=losses.sum() / count)

    backbone.forward = forward  # type: ignore[method-assign]
