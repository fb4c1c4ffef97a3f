"""Encoded prompts that wait for slots of an engine.

Letters: B slots.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence

from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.row_cache import Snapshot

# Maximum number of tokens of the held prompts, in passes. Short prompts have room for the next episodes of hundreds of
# slots, and the memory of long ones is bounded.
HELD_PASSES = 4


class PromptStore:
    """Encoded prompts that wait for slots of an engine.

    A prompt that is needed now is encoded in one pass with upcoming ones, and once for all episodes that start with it.
    """

    def __init__(self, engine: DecodeEngine) -> None:
        self.engine = engine
        self._held: dict[tuple[int, ...], tuple[Snapshot, int]] = {}

    def fill(
        self, slots: Sequence[int], prompts: Sequence[Sequence[int]], upcoming: Iterable[Sequence[int]] = ()
    ) -> None:
        """Fill B slots with their prompts.

        Args:
            slots: Slot numbers; their previous contents are overwritten.
            prompts: Token ids, one prompt per slot.
            upcoming: Prompts that will be requested next. If anything must be encoded, upcoming ones are encoded too
                until the pass is full, because a small pass takes as long; those already held are kept. This stops at
                the first prompt that does not fit into the pass, or, with all held ones, into HELD_PASSES. All other
                held prompts are dropped.
        """
        needed = list(map(tuple, prompts))
        if any(prompt not in self._held for prompt in needed):
            selected = self._select(needed, map(tuple, upcoming))
            self._keep(selected)
            missing = [prompt for prompt in selected if prompt not in self._held]
            self._held |= {prompt: (snapshot, row) for prompt, snapshot, row in self.engine.encode(missing)}
        self.engine.begin(slots, [self._held[prompt] for prompt in needed])

    def _select(
        self, needed: Iterable[tuple[int, ...]], upcoming: Iterable[tuple[int, ...]]
    ) -> dict[tuple[int, ...], None]:
        """The prompts to hold, each once, the needed ones first."""
        selected = dict.fromkeys(needed)
        tokens_to_hold = HELD_PASSES * self.engine.pass_tokens - sum(map(len, selected))
        tokens_to_encode = self.engine.pass_tokens - sum(len(prompt) for prompt in selected if prompt not in self._held)
        for prompt in upcoming:
            if prompt in selected:
                continue
            new = prompt not in self._held
            tokens_to_hold, tokens_to_encode = tokens_to_hold - len(prompt), tokens_to_encode - new * len(prompt)
            if tokens_to_hold < 0 or (new and tokens_to_encode < 0):
                break
            selected[prompt] = None
        return selected

    def _keep(self, selected: Container[tuple[int, ...]]) -> None:
        """Drop all other prompts, with their parts of the passes in which they were encoded."""
        self._held = {prompt: state for prompt, state in self._held.items() if prompt in selected}
        together: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for prompt, (snapshot, _) in self._held.items():
            together[id(snapshot)].append(prompt)
        for prompts in together.values():
            snapshot, rows = self._held[prompts[0]][0], [self._held[prompt][1] for prompt in prompts]
            if len(rows) < len(snapshot.lengths):
                snapshot = snapshot.select(rows)
                self._held |= {prompt: (snapshot, row) for row, prompt in enumerate(prompts)}
