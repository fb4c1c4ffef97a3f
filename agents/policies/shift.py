"""A learned change of h_t before the output head, which is zero before training, and what policies with it share.

Letters: B rows, H hidden.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from ollm_rl.agents.policies.option import VALUE_WIDTH
from ollm_rl.backbones.loading import as_backbone
from ollm_rl.backbones.output_head import OutputHead
from ollm_rl.options.adapter import mlp

WIDTH = 256


class HiddenShift(nn.Module):
    """h' = (1 + s(h)) h + g(h), with a perceptron for s and g whose last layer starts at zero: (B, H) -> (B, H).

    The output head is linear, so s makes the distribution over tokens sharper or flatter, and g moves it.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.network = mlp(hidden_size, WIDTH, hidden_size + 1)
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The changed hidden states h' in float32."""
        hidden_states = hidden_states.float()
        moved, scale = self.network(hidden_states).split([hidden_states.shape[-1], 1], -1)
        return hidden_states + scale * hidden_states + moved


class ShiftedPolicy(nn.Module):
    """Base of the policies that read their tokens off the frozen output head at h'; an update never runs the backbone.

    Args:
        backbone: Its weights are frozen.
    """

    reads_sequences = False
    temperature = 1.0

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        # In a list, so that nn.Module does not register it.
        self._backbone = [as_backbone(backbone).requires_grad_(False)]
        self.head = OutputHead(backbone)
        self.shift = HiddenShift(self.head.hidden_size).to(backbone.device)
        self.value_head = mlp(self.head.hidden_size, VALUE_WIDTH, 1).to(backbone.device)

    @property
    def backbone(self) -> PreTrainedModel:
        """The frozen backbone that decodes."""
        return self._backbone[0]
