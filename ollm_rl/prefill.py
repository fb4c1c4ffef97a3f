"""Prompts before their episodes: encoded in passes of bounded size, each prompt once, and kept until a slot is free.

Letters: B prompts, R rows of a pass, T tokens, H hidden.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from ollm_rl.devices import send
from ollm_rl.row_cache import EncodedPrompt, Snapshot, stacked

if TYPE_CHECKING:
    from ollm_rl.engine import DecodeEngine

PASS_TOKENS = 16384  # of one pass, padding included: bounds the memory of its activations
# Prompts that wait have as many tokens as these passes at most: room for the next episodes of hundreds of slots where
# prompts are short, and a bound on the memory where they are long.
HELD_PASSES = 4


def encode(
    model: Callable[..., BaseModelOutputWithPast],
    prompts: Sequence[tuple[int, ...]],
    device: torch.device,
    pass_tokens: int = PASS_TOKENS,
) -> Iterator[tuple[tuple[int, ...], Snapshot, int]]:
    """Run a model without its head over prompts, equal ones once.

    Yields each prompt with the snapshot and the row of it that hold its state.

    Prompts of like length share a pass; one longer than a pass is encoded piece by piece.
    """
    waiting = sorted(dict.fromkeys(prompts), key=len, reverse=True)
    while waiting:
        count = max(1, pass_tokens // len(waiting[0]))
        together, waiting = waiting[:count], waiting[count:]
        snapshot = _encode_together(model, together, device, pass_tokens)
        for row, prompt in enumerate(together):
            yield prompt, snapshot, row


@torch.no_grad()
def _encode_together(
    model: Callable[..., BaseModelOutputWithPast],
    prompts: Sequence[tuple[int, ...]],
    device: torch.device,
    pass_tokens: int,
) -> Snapshot:
    # Padding stands on the right, where no token of the prompt looks, so that no mask is needed; a slot's own tokens
    # overwrite it before it could ever be visible.
    input_ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True).to(device)
    # Without a config the cache keeps every key, also those that a sliding window would drop.
    filled = DynamicCache()
    lengths = [len(prompt) for prompt in prompts]
    last = send(lengths, device) - 1
    hidden = None
    piece = max(1, pass_tokens // len(prompts))
    for start in range(0, input_ids.shape[1], piece):
        stop = min(start + piece, input_ids.shape[1])
        output = model(input_ids=input_ids[:, start:stop], past_key_values=filled, use_cache=True)
        states = output.last_hidden_state
        assert states is not None
        here = states[torch.arange(len(prompts), device=device), (last - start).clamp(0, stop - start - 1)]
        hidden = here if hidden is None else torch.where((last >= start)[:, None], here, hidden)
    assert hidden is not None
    return Snapshot(stacked(filled), lengths, hidden, [EncodedPrompt(length) for length in lengths])


class PromptStore:
    """Encoded prompts that wait for a slot of an engine.

    One that is needed now is encoded in a pass with those that come next, and once for all episodes that begin with it.
    """

    def __init__(self, engine: "DecodeEngine") -> None:
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
                snapshot = snapshot.take(rows)
                self._held |= {prompt: (snapshot, row) for row, prompt in enumerate(each)}
