"""Encoded prompts that wait for a slot of an engine.

Letters: B slots, H hidden.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence

import torch

from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.row_cache import Snapshot

# Prompts that wait have as many tokens as these passes at most: room for the next episodes of hundreds of slots where
# prompts are short, and a bound on the memory where they are long.
HELD_PASSES = 4


class PromptStore:
    """Encoded prompts that wait for a slot of an engine.

    One that is needed now is encoded in a pass with those that come next, and once for all episodes that begin with it.
    """

    def __init__(self, engine: DecodeEngine) -> None:
        self.engine = engine
        self._held: dict[tuple[int, ...], tuple[Snapshot, int]] = {}

    def fill(
        self, slots: Sequence[int], prompts: Sequence[Sequence[int]], upcoming: Iterable[Sequence[int]] = ()
    ) -> torch.Tensor:
        """Begin in some slots, B of them, with their prompts.

        Args:
            slots: Their numbers; what they held is forgotten.
            prompts: Token ids, one prompt a slot.
            upcoming: Prompts that will be asked for next. When anything has to be encoded, those of them that are held
                stay, and so many others are encoded that a pass is full, since a small one takes as long; up to the
                first that does not fit into the pass, or into HELD_PASSES with all that is held. The rest is forgotten.

        Returns:
            h at the prompts' last tokens, (B, H).
        """
        needed = list(map(tuple, prompts))
        if any(prompt not in self._held for prompt in needed):
            wanted = self._wanted(needed, map(tuple, upcoming))
            self._keep(wanted)
            missing = [prompt for prompt in wanted if prompt not in self._held]
            self._held |= {prompt: (snapshot, row) for prompt, snapshot, row in self.engine.encode(missing)}
        return self.engine.begin(slots, [self._held[prompt] for prompt in needed])

    def _wanted(
        self, needed: Iterable[tuple[int, ...]], upcoming: Iterable[tuple[int, ...]]
    ) -> dict[tuple[int, ...], None]:
        """The prompts to hold, each once, those that are needed first."""
        wanted = dict.fromkeys(needed)
        to_hold = HELD_PASSES * self.engine.pass_tokens - sum(map(len, wanted))
        to_encode = self.engine.pass_tokens - sum(len(prompt) for prompt in wanted if prompt not in self._held)
        for prompt in upcoming:
            if prompt in wanted:
                continue
            new = prompt not in self._held
            to_hold, to_encode = to_hold - len(prompt), to_encode - new * len(prompt)
            if to_hold < 0 or (new and to_encode < 0):
                break
            wanted[prompt] = None
        return wanted

    def _keep(self, wanted: Container[tuple[int, ...]]) -> None:
        """Forget all other prompts, and their part of the passes in which they were encoded."""
        self._held = {prompt: state for prompt, state in self._held.items() if prompt in wanted}
        together: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for prompt, (snapshot, _) in self._held.items():
            together[id(snapshot)].append(prompt)
        for each in together.values():
            snapshot, rows = self._held[each[0]][0], [self._held[prompt][1] for prompt in each]
            if len(rows) < len(snapshot.lengths):
                snapshot = snapshot.select(rows)
                self._held |= {prompt: (snapshot, row) for row, prompt in enumerate(each)}
