"""Which slots read their prompt in one place: those that began from one encoded prompt hold the same numbers.

Letters: S slots.
"""

from collections.abc import Sequence

import torch

from ollm_rl.decode.row_cache import EncodedPrompt
from ollm_rl.devices import to_device


class SharedPrompts:
    """Where each slot reads its prompt: from the first slot that holds the same one.

    Args:
        num_slots: S.
        device: Where the steps run.

    Attributes:
        sources: The slot that each reads its beginning from, (S,).
        shared: How many tokens of it, (S,). Both stay where they are, so that graphs may hold them.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.sources = torch.arange(num_slots, device=device)
        self.shared = torch.zeros_like(self.sources)
        self._prompts: list[EncodedPrompt | None] = [None] * num_slots

    def update(self, prompts: Sequence[EncodedPrompt | None]) -> None:
        """Take note of what the slots hold before a step: their prompts, None where that is nothing."""
        if prompts == self._prompts:
            return
        self._prompts, first = list(prompts), dict[EncodedPrompt, int]()
        pairs = [
            (slot, 0) if prompt is None else (first.setdefault(prompt, slot), prompt.length)
            for slot, prompt in enumerate(prompts)
        ]
        count = len(prompts)
        self.sources[:count], self.shared[:count] = to_device(pairs, self.sources.device).T
