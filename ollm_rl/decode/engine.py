"""The decode engine: B slots over an unmodified transformers model, each at its own position.

A slot holds the keys and values of one sequence. ``prefill`` fills slots from prompts, ``step`` appends one token to
every occupied slot and returns h_t, the tensor that the output head reads. A slot's result does not depend on the
others beyond floating-point noise. On CUDA a step is a recorded graph, one for each number of slots and length.

Letters: S slots, B slots in use by a call, H hidden, V vocabulary, L length of the cache that a step reads.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ollm_rl.backbones.loading import context_length
from ollm_rl.decode.graphs import Graphs
from ollm_rl.decode.joint_products import joined, joint_products
from ollm_rl.decode.memory import check_capacity
from ollm_rl.decode.prefill import PASS_TOKENS, encode
from ollm_rl.decode.row_attention import reading_once, reads_live_part
from ollm_rl.decode.row_cache import (
    EncodedPrompt,
    Place,
    RowCache,
    Snapshot,
    layer_shapes,
    step_masks,
    supported_layer_types,
)
from ollm_rl.devices import send
from ollm_rl.errors import UsageError

BUCKET = 32  # a step reads the cache up to the longest slot, rounded up to this many tokens, where it must read it all


class DecodeEngine:
    """Batched decoding on any transformers causal language model with full or sliding-window attention.

    Args:
        backbone: The model; its weights are read at every call: a policy that lives in it (a LoRA) may move in place.
        num_slots: S, at most; ``restart`` and ``keep`` go on with fewer.
        max_length: Tokens that a slot can hold, prompt and completion together.
        pass_tokens: Most tokens that one pass over prompts reads; bounds memory, not the result.
        compiled: Compile steps, passes over prompts, and the policy in ``collect``: a minute or two at first.

    Attributes:
        lengths: Tokens in each slot; 0 where it is not occupied.
        prompts: What each slot began from and still holds.
        hidden: h_t of every slot, (S, H), written by ``advance``; and so ``tokens`` and ``positions``, (S,), which it
            reads. They stay where they are, so that graphs may hold them.
        kept: Tensors of callers that record graphs of their own here; forgotten with the graphs.

    Raises:
        ValueError: If the architecture's attention or cache is not supported, the model's context is shorter, or the
            memory that is free does not hold so many slots.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        num_slots: int,
        max_length: int,
        *,
        pass_tokens: int = PASS_TOKENS,
        compiled: bool = False,
    ) -> None:
        self.layer_types = supported_layer_types(backbone)
        context = context_length(backbone)
        if max_length > context:
            raise UsageError(
                f"max_length={max_length} is more than the backbone's context of {context} tokens; lower it"
            )
        if num_slots < 1:
            raise UsageError(f"num_slots={num_slots} must be at least 1")
        self.config = config = backbone.config.get_text_config()
        self.backbone, self.device, self.compiled = backbone, backbone.device, compiled
        self._model: Any = torch.compile(backbone.base_model) if compiled else backbone.base_model
        self._reads_live_part = reads_live_part(backbone)
        self._bucket = max_length if self._reads_live_part else BUCKET
        self.window: int | None = getattr(config, "sliding_window", None)
        self.vocab_size: int = backbone.get_input_embeddings().weight.shape[0]
        self.num_slots, self.max_length, self.pass_tokens = num_slots, max_length, pass_tokens
        self._shapes = layer_shapes(backbone)
        sizes = sum(heads * size for heads, size in self._shapes)
        check_capacity(num_slots, sizes * max_length * backbone.dtype.itemsize, max_length, self.device)
        # On a CPU one large product is not faster.
        self._products = joint_products(backbone) if self.device.type == "cuda" else []
        self.cache: RowCache | None = None
        self.graphs = Graphs(self.device)
        self.kept: dict[Hashable, Any] = {}
        self.lengths = [0] * num_slots
        self.prompts: list[EncodedPrompt | None] = [None] * num_slots
        self._rows = torch.arange(num_slots, device=self.device)
        # Where each slot reads its prompt, and how much of it; made for what the slots held then.
        self._sources, self._shared = self._rows.clone(), torch.zeros_like(self._rows)
        self._held = self.prompts.copy()
        self.tokens = torch.zeros(num_slots, dtype=torch.long, device=self.device)
        self.positions = torch.zeros_like(self.tokens)
        self.hidden = torch.zeros(num_slots, config.hidden_size, dtype=backbone.dtype, device=self.device)

    def restart(self, num_slots: int) -> None:
        """Forget what the slots hold and go on with this many of them, at most those the engine was made with."""
        if not 0 < num_slots <= self.num_slots:
            raise ValueError(
                f"num_slots={num_slots} is not within 1 to {self.num_slots}, what the engine was made with"
            )
        self.lengths, self.prompts = [0] * num_slots, [None] * num_slots
        self.positions.zero_()

    def free(self, num_slots: int | None = None) -> None:
        """Give the memory of the cache and the graphs back and forget what the slots hold.

        Args:
            num_slots: From now on the most slots; as many as before where left out.
        """
        self.cache, self.graphs, self.kept = None, Graphs(self.device), {}
        self.num_slots = num_slots or self.num_slots
        self.restart(self.num_slots)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def encode(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[tuple[int, ...], Snapshot, int]]:
        """Run the model over prompts, equal ones once; yields each with its snapshot and row, to ``begin`` from.

        Raises:
            ValueError: If a prompt is empty, fills a slot whole or holds an unknown token; nothing has run then.
        """
        for prompt in prompts:
            if not 0 < len(prompt) < self.max_length:
                raise ValueError(
                    f"a prompt of {len(prompt)} tokens does not fit a slot of {self.max_length} with room to go on; "
                    "shorten it or raise max_length"
                )
            for token in (min(prompt), max(prompt)):
                if not 0 <= token < self.vocab_size:
                    raise ValueError(
                        f"a prompt's token {token} is out of range; tokens go from 0 to {self.vocab_size - 1}"
                    )
        return encode(self._read, list(map(tuple, prompts)), self.device, self.pass_tokens)

    def _read(self, input_ids: torch.Tensor, **inputs: Any) -> BaseModelOutputWithPast:
        """The model's pass over prompts."""
        if self.compiled:
            _compile_for_any((0, 1), input_ids)
        with joined(self._products):
            output: BaseModelOutputWithPast = self._model(input_ids=input_ids, **inputs)
        return output

    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Fill slots from prompts; equal prompts are computed once.

        Args:
            slots: Their numbers, B of them; what they held is forgotten.
            prompts: Token ids, one prompt a slot, none empty.

        Returns:
            h at every prompt's last token, (B, H).

        Raises:
            ValueError: As ``encode``; the slots are left as they were then.
        """
        states = {prompt: (snapshot, row) for prompt, snapshot, row in self.encode(prompts)}
        return self.begin(slots, [states[tuple(prompt)] for prompt in prompts])

    def begin(self, slots: Sequence[int], states: Sequence[tuple[Snapshot, int]]) -> torch.Tensor:
        """Fill slots from rows of snapshots, one a slot; returns h_t of these slots, (B, H)."""
        groups: dict[int, list[int]] = defaultdict(list)
        for place, (snapshot, _) in enumerate(states):
            groups[id(snapshot)].append(place)
        for places in groups.values():
            self.restore(
                states[places[0]][0], [slots[place] for place in places], [states[place][1] for place in places]
            )
        return self.hidden[self._index(slots)]

    def snapshot(self, slots: Sequence[int], start: int = 0) -> Snapshot:
        """Save occupied slots, to go on from them later or elsewhere; the slots themselves stay as they are.

        Args:
            slots: Their numbers.
            start: Tokens at the beginning that are left out, at most as many as any of the slots holds; slots that go
                on from it must hold the same ones, as those of one prompt do.

        Raises:
            ValueError: If a slot is not occupied or holds fewer tokens than ``start``.
        """
        self._check_occupied(slots)
        assert self.cache is not None
        lengths, index = [self.lengths[slot] for slot in slots], self._index(slots)
        if not 0 <= start <= min(lengths):
            raise ValueError(f"start={start} is not within 0 to {min(lengths)}, the tokens of the shortest slot")
        prompts = [self.prompts[slot] for slot in slots]
        return Snapshot(self.cache.read(index, start, max(lengths)), lengths, self.hidden[index], prompts, start)

    def restore(self, snapshot: Snapshot, slots: Sequence[int], rows: Sequence[int] | None = None) -> torch.Tensor:
        """Fill slots from a snapshot, exactly; what they held is forgotten.

        Args:
            snapshot: Of this engine or another on the same model.
            slots: Their numbers, B of them.
            rows: Rows of the snapshot, one a slot; its first B where left out.

        Returns:
            h_t of these slots, (B, H), as it was when they were saved.

        Raises:
            ValueError: If the numbers differ, a row is longer than a slot, or a slot holds fewer tokens than were left
                out of the snapshot.
        """
        rows = range(len(slots)) if rows is None else rows
        if len(rows) != len(slots) or max(rows) >= len(snapshot.lengths):
            raise ValueError(
                f"{len(slots)} slots cannot be filled from {len(snapshot.lengths)} saved ones; name the rows"
            )
        lengths = [snapshot.lengths[row] for row in rows]
        longest = max(lengths)
        if longest > self.max_length:
            raise ValueError(f"a saved slot of {longest} tokens does not fit slots of {self.max_length}")
        for slot in slots:
            if self.lengths[slot] < snapshot.start:
                raise ValueError(
                    f"slot {slot} holds {self.lengths[slot]} tokens, and the snapshot left the first {snapshot.start} "
                    "out; fill the slot with them first, or save with start=0"
                )
        if self.cache is None:
            self.cache = RowCache(
                self._shapes, self.num_slots, self.max_length, dtype=self.backbone.dtype, device=self.device
            )
        # One copy to the device, not three.
        index, source, positions = send([list(slots), list(rows), lengths], self.device)
        self.cache.write(index, snapshot.states, source, snapshot.start, longest)
        hidden = snapshot.hidden[source]
        self.hidden[index], self.positions[index] = hidden, positions
        for slot, row, length in zip(slots, rows, lengths, strict=True):
            self.lengths[slot], self.prompts[slot] = length, snapshot.prompts[row]
        return hidden

    def fork(self, source: int, targets: Sequence[int]) -> torch.Tensor:
        """Copy an occupied slot to others, exactly; what they held is forgotten. Returns h_t of the copies, (B, H).

        Raises:
            ValueError: If the source is not occupied.
        """
        self._check_occupied([source])
        assert self.cache is not None
        index = self._index(targets)
        self.cache.copy(self._index([source]), index, self.lengths[source])
        self.hidden[index], self.positions[index] = self.hidden[source].clone(), self.lengths[source]
        for target in targets:
            self.lengths[target], self.prompts[target] = self.lengths[source], self.prompts[source]
        return self.hidden[index]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token to every slot.

        Args:
            tokens: Token ids (S,); those of unoccupied slots do not matter.

        Returns:
            h at the new tokens, (S, H); rows of unoccupied slots mean nothing.

        Raises:
            ValueError: If an occupied slot is full, or (on a CPU) a token is out of range; nothing has moved then.
        """
        count = len(self.lengths)
        if self.cache is None or len(tokens) != count:
            raise ValueError(f"step got {len(tokens)} tokens for {count} slots; prefill first, one a slot")
        if tokens.device.type == "cpu":  # elsewhere a look at the tokens would make the host wait for the device
            tokens = self._checked(tokens)
        length = self.read_length(max(self.lengths))
        self.tokens[:count] = tokens
        self.positions[:count] = send(self.lengths, self.device)
        self.share_prompts()
        self.graphs.run((count, length), partial(self.advance, count, length))
        self.lengths = [length + 1 if length else 0 for length in self.lengths]
        return self.hidden[:count].clone()

    def read_length(self, longest: int) -> int:
        """L of a step in which the longest slot holds this many tokens before it.

        Raises:
            ValueError: If that slot is full.
        """
        if longest >= self.max_length:
            raise ValueError(f"slot {self.lengths.index(longest)} is full at {longest} tokens; release it")
        return min(self.max_length, (longest // self._bucket + 1) * self._bucket)

    def share_prompts(self) -> None:
        """Let slots that began from one prompt read it from the first of them; before a step, if any has changed."""
        if not self._reads_live_part:
            return
        held = [prompt if length else None for prompt, length in zip(self.prompts, self.lengths, strict=True)]
        if held == self._held:
            return
        self._held, first = held, dict[EncodedPrompt, int]()
        pairs = [
            (slot, 0) if prompt is None else (first.setdefault(prompt, slot), prompt.length)
            for slot, prompt in enumerate(held)
        ]
        self._sources[: len(held)], self._shared[: len(held)] = send(pairs, self.device).T

    @torch.no_grad()
    def advance(self, count: int, length: int) -> None:
        """The model's part of a step, in place: reads ``tokens`` and ``positions``, writes ``hidden``.

        Args:
            count: Slots, the first of all.
            length: L.
        """
        assert self.cache is not None
        sources, shared = self._sources[:count], self._shared[:count]
        place = self.cache.place = Place(self._rows[:count], self.positions[:count], length, sources, shared)
        masks = step_masks(place, self.backbone.dtype, window=self.window, layer_types=self.layer_types)
        input_ids, position_ids = self.tokens[:count, None], place.positions[:, None]
        if self.compiled:
            each = masks.values() if isinstance(masks, dict) else [masks]
            _compile_for_any(0, input_ids, position_ids, place.rows, place.positions, sources, shared, *each)
        with reading_once(self.config, place), joined(self._products):
            output = self._model(
                input_ids=input_ids,
                attention_mask=masks,
                position_ids=position_ids,
                past_key_values=self.cache,
                use_cache=True,
            )
        self.hidden[:count] = output.last_hidden_state[:, 0]

    def release(self, slot: int) -> None:
        """Give a slot up; it costs time in every step until it is filled again or dropped by ``keep``."""
        self.lengths[slot], self.prompts[slot] = 0, None

    def crop(self, slot: int, length: int) -> None:
        """Forget all but the first tokens of an occupied slot; its h_t means nothing until the next step.

        Raises:
            ValueError: If it holds fewer.
        """
        if not 0 < length <= self.lengths[slot]:
            raise ValueError(f"length={length} is not within 1 to {self.lengths[slot]}, the tokens of slot {slot}")
        self.lengths[slot], prompt = length, self.prompts[slot]
        if prompt is not None and prompt.length > length:
            self.prompts[slot] = None

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all slots but these, which become slots 0, 1, ... in this order; later steps are as small as they.

        Only slots that move are copied, so those that can stay where they are should.
        """
        moves = [(source, target) for target, source in enumerate(slots) if source != target]
        if moves and self.cache is not None:
            sources, targets = (self._index(side) for side in zip(*moves, strict=True))
            self.cache.copy(sources, targets, max(self.lengths[source] for source, _ in moves))
            self.positions[targets] = self.positions[sources]
            self.hidden[targets] = self.hidden[sources]
        self.lengths = [self.lengths[slot] for slot in slots]
        self.prompts = [self.prompts[slot] for slot in slots]

    def enough(self, needed: int) -> int:
        """Number of slots worth going on with where so many are needed; at most as many as there are.

        On CUDA another number of slots takes another graph, so there it is rounded up to one of four sizes between two
        powers of two; a step of fewer than 32 slots takes no less time.
        """
        if self.device.type == "cuda":
            needed = max(needed, 32)
            unit = 1 << max(0, (needed - 1).bit_length() - 3)
            needed = -(-needed // unit) * unit
        return min(needed, len(self.lengths))

    def _index(self, slots: Sequence[int]) -> torch.Tensor:
        return send(list(slots), self.device)

    def _check_occupied(self, slots: Sequence[int]) -> None:
        for slot in slots:
            if not self.lengths[slot]:
                raise ValueError(f"slot {slot} is not occupied; prefill it first")

    def _checked(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens, those of unoccupied slots made harmless."""
        occupied = torch.tensor([length > 0 for length in self.lengths])
        wrong = occupied & ((tokens < 0) | (tokens >= self.vocab_size))
        if wrong.any():
            slot = int(wrong.long().argmax())
            raise ValueError(
                f"token {int(tokens[slot])} of slot {slot} is out of range; tokens go from 0 to {self.vocab_size - 1}"
            )
        return tokens.where(occupied, 0)


def _compile_for_any(dimensions: int | tuple[int, ...], *tensors: torch.Tensor) -> None:
    """Let one compilation serve all sizes of these dimensions.

    With ``dynamic=True`` in their place every size of the cache would vary too, and compiling take twice as long.
    """
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, dimensions)
