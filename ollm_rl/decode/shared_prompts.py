"""Finds slots that can read their prompt from one slot: slots with the same encoded prompt hold equal values.

Letters: S slots.
"""

from collections.abc import Sequence

import torch

from ollm_rl.decode.row_cache import EncodedPrompt
from ollm_rl.devices import to_device


class SharedPrompts:
    """Lets each slot read its prompt from the first slot that holds the same one.

    Both tensors keep their addresses, because graphs store them.

    Args:
        num_slots: S.
        device: Device of the steps.

    Attributes:
        sources: Slot from which each slot reads its beginning, (S,).
        shared: Number of tokens that it reads from there, (S,).
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self._both = torch.stack([torch.arange(num_slots), torch.zeros(num_slots, dtype=torch.long)]).to(device)
        self.sources, self.shared = self._both
        self._prompts: list[EncodedPrompt | None] = [None] * num_slots

    def update(self, prompts: Sequence[EncodedPrompt | None]) -> None:
        """Update the tensors before a step from the prompts that the slots hold; None for an empty slot."""
        if prompts == self._prompts:
            return
        self._prompts, first = list(prompts), dict[EncodedPrompt, int]()
        sources = [slot if prompt is None else first.setdefault(prompt, slot) for slot, prompt in enumerate(prompts)]
        shared = [0 if prompt is None else prompt.length for prompt in prompts]
        self._both[:, : len(prompts)] = to_device([sources, shared], self._both.device)
