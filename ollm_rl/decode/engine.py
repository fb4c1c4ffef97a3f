"""The decode engine: S slots over an unmodified transformers model, each at its own position.

A slot holds the keys and values of one sequence. ``prefill`` fills slots from prompts, ``step`` appends one token to
every occupied slot and returns h_t, the tensor that the output head reads; ``run`` does several steps with a function
that chooses the tokens on the device. A slot's result does not depend on the others beyond floating-point noise. On
CUDA a step is a recorded graph, one for each number of slots and length.

Letters: S slots, B slots in use by a call, H hidden, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from ollm_rl.backbones.loading import context_length
from ollm_rl.decode.memory import check_capacity, worthwhile_slots
from ollm_rl.decode.prefill import PASS_TOKENS, check_prompts, encode
from ollm_rl.decode.row_cache import EncodedPrompt, RowCache, Snapshot
from ollm_rl.decode.step import Choose, ModelStep
from ollm_rl.devices import to_device
from ollm_rl.errors import UsageError


class DecodeEngine:
    """Batched decoding on any transformers causal language model with full or sliding-window attention.

    Args:
        backbone: The model; its weights are read at every call: a policy that lives in it (a LoRA) may move in place.
        num_slots: S, at most; ``restart`` and ``keep`` continue with fewer.
        max_length: Tokens that a slot can hold, prompt and completion together.
        pass_tokens: Most tokens that one pass over prompts reads; bounds memory, not the result.
        compiled: Compile steps, passes over prompts, and the chooser of ``Turns``; a minute or two at first.

    Attributes:
        lengths: Tokens in each slot; 0 where it is not occupied.
        prompts: What each slot began from and still holds.

    Raises:
        UsageError: If the architecture's attention or cache is not supported, the model's context is shorter, or the
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
        context = context_length(backbone)
        if max_length > context:
            raise UsageError(
                f"max_length={max_length} is more than the backbone's context of {context} tokens; lower it"
            )
        if num_slots < 1:
            raise UsageError(f"num_slots={num_slots} must be at least 1")
        self.backbone, self.device, self.compiled = backbone, backbone.device, compiled
        self.vocab_size: int = backbone.get_input_embeddings().weight.shape[0]
        self.num_slots, self.max_length, self.pass_tokens = num_slots, max_length, pass_tokens
        self._step = ModelStep(backbone, num_slots, max_length, compiled=compiled)
        check_capacity(num_slots, self._step.slot_bytes, max_length, self.device)
        self.lengths = [0] * num_slots
        self.prompts: list[EncodedPrompt | None] = [None] * num_slots

    @property
    def hidden(self) -> torch.Tensor:
        """h_t of every slot, (S, H); rows of unoccupied slots mean nothing."""
        return self._step.hidden

    @property
    def cache(self) -> RowCache | None:
        """Keys and values of the slots; None before the first is filled."""
        return self._step.cache

    def restart(self, num_slots: int) -> None:
        """Forget what the slots hold and go on with this many of them, at most those the engine was made with."""
        if not 0 < num_slots <= self.num_slots:
            raise ValueError(
                f"num_slots={num_slots} is not within 1 to {self.num_slots}, what the engine was made with"
            )
        self.lengths, self.prompts = [0] * num_slots, [None] * num_slots
        self._step.positions.zero_()

    def free(self, num_slots: int | None = None) -> None:
        """Give the memory of the cache and the graphs back and forget what the slots hold.

        Args:
            num_slots: From now on the most slots; as many as before where left out.
        """
        self._step.free()
        self.num_slots = num_slots or self.num_slots
        self.restart(self.num_slots)

    def encode(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[tuple[int, ...], Snapshot, int]]:
        """Run the model over prompts, equal ones once; yields each with its snapshot and row, to ``begin`` from.

        Raises:
            ValueError: If a prompt is empty, fills a slot whole or holds an unknown token; nothing has run then.
        """
        check_prompts(prompts, max_length=self.max_length, vocab_size=self.vocab_size)
        return encode(self._step.read, list(map(tuple, prompts)), self.device, self.pass_tokens)

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
        # One copy to the device, not three.
        index, source, positions = to_device([list(slots), list(rows), lengths], self.device)
        self._step.allocate(self.num_slots).write(index, snapshot.states, source, snapshot.start, longest)
        hidden = snapshot.hidden[source]
        self.hidden[index], self._step.positions[index] = hidden, positions
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
        self.hidden[index], self._step.positions[index] = self.hidden[source].clone(), self.lengths[source]
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
        longest = max(self.lengths)
        if longest >= self.max_length:
            raise ValueError(f"slot {self.lengths.index(longest)} is full at {longest} tokens; release it")
        self._step.tokens[:count] = tokens
        self._step.positions[:count] = to_device(self.lengths, self.device)
        self._note_prompts()
        self._step.step(count, longest)
        self.lengths = [length + 1 if length else 0 for length in self.lengths]
        return self.hidden[:count].clone()

    def run(
        self,
        choose: Choose,
        going: torch.Tensor,
        turns: int,
        moved: Sequence[torch.Tensor] = (),
    ) -> list[bool]:
        """Some turns on the device: choose a token in every slot, run the model on it.

        On CUDA a turn is one recorded graph for each number of slots and length. So what ``choose`` reads and writes
        stays where it is, and nothing that it does may depend on values on the host.

        Args:
            choose: h_t of the slots, (B, H), to their next tokens, (B,). An equal one is recorded only once.
            going: Which slots continue after a turn, (S,); ``choose`` writes it. Others stay where they are until the
                turns are over, and are released then.
            turns: Their number.
            moved: Tensors that ``choose`` both reads and writes.

        Returns:
            Which slots continue, B of them.
        """
        in_use = going[: len(self.lengths)]
        self._note_prompts()
        self._step.turns(choose, in_use, max(self.lengths), turns, moved)
        continues: list[bool] = in_use.tolist()
        self.lengths = [n + turns if goes else 0 for n, goes in zip(self.lengths, continues, strict=True)]
        return continues

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
            positions = self._step.positions
            positions[targets] = positions[sources]
            self.hidden[targets] = self.hidden[sources]
        self.lengths = [self.lengths[slot] for slot in slots]
        self.prompts = [self.prompts[slot] for slot in slots]

    def enough(self, needed: int) -> int:
        """Number of slots worth having where so many are needed; at most as many as there are."""
        return min(worthwhile_slots(needed, self.device), len(self.lengths))

    def _note_prompts(self) -> None:
        pairs = zip(self.prompts, self.lengths, strict=True)
        self._step.note_prompts([prompt if length else None for prompt, length in pairs])

    def _index(self, slots: Sequence[int]) -> torch.Tensor:
        return to_device(list(slots), self.device)

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
