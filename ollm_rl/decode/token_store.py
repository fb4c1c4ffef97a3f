"""Keys and values of the tokens of many branches, each once, so that branches that begin alike share their beginnings.

Letters: N tokens, G tensors of a stack.
"""

from collections.abc import Sequence

import torch

from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.row_cache import MOVED_BYTES
from ollm_rl.devices import to_device


class TokenStore:
    """Saved tokens of an engine's slots, from which slots continue.

    Args:
        engine: The engine.
        capacity: Maximum number of tokens, which are allocated when the first are saved.
    """

    def __init__(self, engine: DecodeEngine, capacity: int) -> None:
        self._engine, self._capacity = engine, capacity
        self._states: list[torch.Tensor] = []  # (capacity, G, heads, head size) each

    def save(self, slots: Sequence[int], positions: Sequence[int], places: Sequence[int]) -> None:
        """Copy N tokens, each named by its slot and its position there, to these places.

        Raises:
            ValueError: If a slot does not hold that token.
        """
        engine = self._engine
        for slot, position in zip(slots, positions, strict=True):
            if not 0 <= position < engine.lengths[slot]:
                raise ValueError(f"position={position} is not within the {engine.lengths[slot]} tokens of slot {slot}")
        assert engine.cache is not None
        of_slots, of_tokens, index = to_device([list(slots), list(positions), list(places)], engine.device)
        tokens = engine.cache.read_tokens(of_slots, of_tokens)
        if not self._states:
            self._states = [states.new_empty(self._capacity, *states.shape[1:]) for states in tokens]
        for mine, states in zip(self._states, tokens, strict=True):
            mine[index] = states

    def continue_slots(self, slots: Sequence[int], lengths: Sequence[int], places: Sequence[Sequence[int]]) -> None:
        """Cut slots to their first ``lengths`` tokens, and append to each the tokens at its places.

        h_t of the slots is undefined until the next step.

        Raises:
            ValueError: If a slot holds fewer tokens, or has no room for them.
        """
        engine = self._engine
        targets: list[tuple[int, int, int]] = []  # slot, position, place
        for slot, length, of_slot in zip(slots, lengths, places, strict=True):
            if length + len(of_slot) > engine.max_length:
                raise ValueError(f"{length + len(of_slot)} tokens do not fit slots of {engine.max_length}")
            targets += [(slot, length + number, place) for number, place in enumerate(of_slot)]
        for slot, length in zip(slots, lengths, strict=True):
            engine.crop(slot, length)
        together = max(1, MOVED_BYTES // engine.token_bytes)
        for start in range(0, len(targets), together):
            part = list(zip(*targets[start : start + together], strict=True))
            of_slots, of_tokens, index = to_device(part, engine.device)
            assert engine.cache is not None
            engine.cache.write_tokens(of_slots, of_tokens, [states[index] for states in self._states])
        for slot, length, of_slot in zip(slots, lengths, places, strict=True):
            engine.lengths[slot] = length + len(of_slot)
