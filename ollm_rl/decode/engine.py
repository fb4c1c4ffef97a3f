"""The decode engine: S slots over an unmodified transformers model, each at its own position.

A slot holds the keys and values of one sequence. ``prefill`` fills slots from prompts. ``step`` appends one token to
every occupied slot and returns h_t, the tensor that the output head reads. ``run`` does several steps with a function
that chooses the tokens on the device. Beyond floating-point noise, a slot's result does not depend on the other slots.
On CUDA a step is a recorded graph, one for each number of slots and length.

Letters: S slots, B slots in use by a call, H hidden, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedModel

from ollm_rl.backbones.loading import as_backbone, context_length
from ollm_rl.decode.acceptance import check_decoding, shortcuts
from ollm_rl.decode.memory import check_capacity, worthwhile_slots
from ollm_rl.decode.prefill import CPU_PASS_TOKENS, PASS_TOKENS, check_prompts, encode
from ollm_rl.decode.row_cache import EncodedPrompt, RowCache, Snapshot, first_pass
from ollm_rl.decode.step import Choose, ModelStep
from ollm_rl.devices import Fetched, to_device
from ollm_rl.errors import UsageError
from ollm_rl.settings import Count, checked

# On a CPU. Fewer rows gain less from reading only their live parts than it takes to find these.
MANY_SLOTS = 16


class DecodeEngine:
    """Batched decoding on any transformers causal language model with full or sliding-window attention.

    Args:
        backbone: The model. Its weights are read at every call, so a policy inside it (a LoRA) may be updated in place.
        num_slots: S, the maximum; ``restart`` and ``keep`` continue with fewer.
        max_length: Maximum number of tokens in a slot, prompt and completion together.
        pass_tokens: Maximum number of tokens in one pass over prompts. It bounds memory and does not change the result.
            None is 1,024 on a CPU, else 16,384.
        compiled: Whether to compile passes over prompts, the chooser of ``Turns``, and steps that have no other
            shortcut; takes up to half a minute, or minutes if the model's layers differ.

    Weights may change in place. Hooks, layers and LoRAs that are added later may have no effect on steps, nor may, on
    CUDA, the merging or disabling of a LoRA, until ``free`` is called.

    Attributes:
        lengths: Number of tokens in each slot; 0 if it is not occupied.
        prompts: Encoded prompt at the beginning of each slot; None if the slot does not hold one.

    Raises:
        UsageError: If the architecture's attention or cache is not supported, the model's context is shorter than
            ``max_length``, or the slots do not fit the free memory.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        num_slots: int,
        max_length: int,
        *,
        pass_tokens: int | None = None,
        compiled: bool = False,
    ) -> None:
        num_slots, max_length = checked("num_slots", num_slots, Count), checked("max_length", max_length, Count)
        context, compiled = context_length(as_backbone(backbone)), checked("compiled", compiled, bool)
        if max_length > context:
            raise UsageError(
                f"max_length={max_length} is more than the backbone's context of {context} tokens; lower it"
            )
        check_decoding(backbone)
        self.backbone, self.device, self.compiled = backbone, backbone.device, compiled
        self.vocab_size: int = backbone.get_input_embeddings().weight.shape[0]
        self.num_slots, self.max_length = num_slots, max_length
        if pass_tokens is None:
            pass_tokens = CPU_PASS_TOKENS if self.device.type == "cpu" else PASS_TOKENS
        self.pass_tokens = checked("pass_tokens", pass_tokens, Count)
        seen = first_pass(backbone, torch.zeros(1, 1, dtype=torch.long, device=self.device))
        found = shortcuts(backbone, seen.shapes, max_length, many=num_slots >= MANY_SLOTS, compiled=compiled)
        self._step = ModelStep(backbone, num_slots, max_length, compiled=compiled, seen=seen, shortcuts=found)
        check_capacity(num_slots, self.slot_bytes, f"{max_length} tokens", self.device)
        self.lengths = [0] * num_slots
        self.prompts: list[EncodedPrompt | None] = [None] * num_slots

    @property
    def hidden(self) -> torch.Tensor:
        """h_t of every slot, (S, H); rows of unoccupied slots are undefined."""
        return self._step.hidden

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot's keys and values."""
        return self._step.slot_bytes

    @property
    def token_bytes(self) -> int:
        """Memory of one token's keys and values."""
        return self._step.token_bytes

    @property
    def cache(self) -> RowCache | None:
        """Keys and values of the slots; None before the first slot is filled."""
        return self._step.cache

    def restart(self, num_slots: int) -> None:
        """Empty all slots and continue with ``num_slots`` of them, at most those the engine was created with."""
        if not 0 < num_slots <= self.num_slots:
            raise ValueError(
                f"num_slots={num_slots} is not within 1 to {self.num_slots}, which the engine was created with"
            )
        self.lengths, self.prompts = [0] * num_slots, [None] * num_slots
        self._step.positions.zero_()

    def free(self, num_slots: int | None = None) -> None:
        """Empty all slots and release the memory of the cache and the graphs.

        Args:
            num_slots: The new maximum number of slots, at most the old one; None keeps it.
        """
        num_slots = num_slots or self.num_slots
        self.restart(num_slots)
        self._step.free()
        self.num_slots = num_slots

    def encode(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[tuple[int, ...], Snapshot, int]]:
        """Run the model over prompts, equal ones once. Yields each with the snapshot and row that ``begin`` takes.

        Raises:
            ValueError: If a prompt is empty, fills a whole slot or holds an unknown token; raised before anything runs.
        """
        check_prompts(prompts, max_length=self.max_length, vocab_size=self.vocab_size)
        return encode(self._step.read, list(map(tuple, prompts)), self.device, self.pass_tokens)

    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Fill slots from prompts; equal prompts are encoded once.

        Args:
            slots: B slot numbers; their previous contents are overwritten.
            prompts: Token ids, one prompt per slot, none empty.

        Returns:
            h at every prompt's last token, (B, H).

        Raises:
            ValueError: As for ``encode``; the slots do not change then.
        """
        states = {prompt: (snapshot, row) for prompt, snapshot, row in self.encode(prompts)}
        self.begin(slots, [states[tuple(prompt)] for prompt in prompts])
        return self.hidden[self._index(slots)]

    def begin(self, slots: Sequence[int], states: Sequence[tuple[Snapshot, int]]) -> None:
        """Fill slots from rows of snapshots, one per slot, exactly; their previous contents are overwritten."""
        together: dict[int, list[tuple[int, Snapshot, int]]] = defaultdict(list)  # by snapshot
        for slot, (snapshot, row) in zip(slots, states, strict=True):
            together[id(snapshot)].append((slot, snapshot, row))
        filled = [each for group in together.values() for each in group]
        lengths = [snapshot.lengths[row] for _, snapshot, row in filled]
        # One copy to the device, however many snapshots there are.
        numbers = [[slot for slot, *_ in filled], [row for *_, row in filled], lengths]
        index, source, positions = to_device(numbers, self.device)
        cache, sizes, hidden = self._step.allocate(self.num_slots), list(map(len, together.values())), []
        for group, to, rows in zip(together.values(), index.split(sizes), source.split(sizes), strict=True):
            snapshot = group[0][1]
            cache.write(to, snapshot.states, rows, max(snapshot.lengths[row] for *_, row in group))
            hidden.append(snapshot.hidden[rows])
        self.hidden[index], self._step.positions[index] = torch.cat(hidden), positions
        for (slot, snapshot, row), length in zip(filled, lengths, strict=True):
            self.lengths[slot], self.prompts[slot] = length, snapshot.prompts[row]
        self._step.note_prompts(self.prompts)  # now, while the device is usually still at work, not when a step waits

    def snapshot(self, slots: Sequence[int]) -> Snapshot:
        """Save occupied slots, to continue from them later or elsewhere; the slots do not change.

        Raises:
            ValueError: If a slot is not occupied.
        """
        self._check_occupied(slots)
        assert self.cache is not None
        lengths, index = [self.lengths[slot] for slot in slots], self._index(slots)
        prompts = [self.prompts[slot] for slot in slots]
        return Snapshot(self.cache.read(index, max(lengths)), lengths, self.hidden[index], prompts)

    def restore(self, snapshot: Snapshot, slots: Sequence[int], rows: Sequence[int] | None = None) -> torch.Tensor:
        """Fill slots from a snapshot, exactly; their previous contents are overwritten.

        Args:
            snapshot: Snapshot of this engine or of another one on the same model.
            slots: B slot numbers.
            rows: Rows of the snapshot, one per slot; None is its first B rows.

        Returns:
            h_t of these slots, (B, H), as it was when they were saved.

        Raises:
            ValueError: If there is not one row per slot, or a row is longer than a slot.
        """
        rows = range(len(slots)) if rows is None else rows
        if len(rows) != len(slots) or max(rows) >= len(snapshot.lengths):
            raise ValueError(
                f"{len(slots)} slots cannot be filled from {len(snapshot.lengths)} saved ones; name the rows"
            )
        longest = max(snapshot.lengths[row] for row in rows)
        if longest > self.max_length:
            raise ValueError(f"a saved slot of {longest} tokens does not fit slots of {self.max_length}")
        self.begin(slots, [(snapshot, row) for row in rows])
        return self.hidden[self._index(slots)]

    def fork(self, source: int, targets: Sequence[int]) -> torch.Tensor:
        """Copy an occupied slot to others, exactly, and return h_t of the copies, (B, H).

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
            tokens: Token ids (S,); those of unoccupied slots are ignored.

        Returns:
            h at the new tokens, (S, H); rows of unoccupied slots are undefined.

        Raises:
            ValueError: If an occupied slot is full, or (on a CPU) a token is out of range. No slot changes then.
        """
        count = len(self.lengths)
        if self.cache is None or len(tokens) != count:
            raise ValueError(f"step got {len(tokens)} tokens for {count} slots; prefill first, one per slot")
        if tokens.device.type == "cpu":  # on other devices this check would make the host wait
            tokens = self._checked(tokens)
        longest = max(self.lengths)
        if longest >= self.max_length:
            raise ValueError(f"slot {self.lengths.index(longest)} is full at {longest} tokens; release it")
        self._step.tokens[:count] = tokens
        self._step.positions[:count] = to_device(self.lengths, self.device)
        self._step.note_prompts(self.prompts)
        self._step.step(count, longest)
        self.lengths = [length + 1 if length else 0 for length in self.lengths]
        return self.hidden[:count].clone()

    def run(
        self,
        choose: Choose,
        active: torch.Tensor,
        turns: int,
        mutated: Sequence[torch.Tensor] = (),
        after: Callable[[Fetched], None] = lambda awaited: None,
        ahead: int = 0,
    ) -> list[bool]:
        """Several turns on the device: choose a token in every slot, then run the model on it.

        On CUDA a turn is one recorded graph for each number of slots and length. So the tensors that ``choose`` reads
        and writes must keep their addresses, and it must not depend on values on the host.

        Args:
            choose: Maps h_t of the slots, (B, H), to their next tokens, (B,). Equal functions are recorded only once.
            active: Slots that continue after a turn, (S,); written by ``choose``. The others do not advance, and are
                released after the turns.
            turns: Number of turns.
            mutated: Tensors that ``choose`` both reads and writes.
            after: Called when the turns are under way, with what the host will wait for. It is for more work on the
                device, and for work of the host until then.
            ahead: Number of last turns for which the host does not wait. What it does next takes no time of the device,
                but a slot that ends in these turns is released only after the next call.

        Returns:
            Which slots continue, B of them, as far as the host has waited.
        """
        in_use, longest, awaited = active[: len(self.lengths)], max(self.lengths), turns - ahead
        self._step.note_prompts(self.prompts)
        self._step.turns(choose, in_use, longest, awaited, mutated)
        result = Fetched(in_use)
        self._step.turns(choose, in_use, longest + awaited, ahead, mutated)
        after(result)
        continues: list[bool] = result()
        self.lengths = [n + turns if runs else 0 for n, runs in zip(self.lengths, continues, strict=True)]
        self.prompts = [prompt if runs else None for prompt, runs in zip(self.prompts, continues, strict=True)]
        return continues

    def release(self, slot: int) -> None:
        """Empty a slot. It still costs time in every step until it is filled again or dropped by ``keep``."""
        self.lengths[slot], self.prompts[slot] = 0, None

    def crop(self, slot: int, length: int) -> None:
        """Keep only the first ``length`` tokens of an occupied slot; its h_t is undefined until the next step.

        Raises:
            ValueError: If the slot holds fewer tokens.
        """
        if not 0 < length <= self.lengths[slot]:
            raise ValueError(f"length={length} is not within 1 to {self.lengths[slot]}, the tokens of slot {slot}")
        self.lengths[slot], prompt = length, self.prompts[slot]
        if prompt is not None and prompt.length > length:
            self.prompts[slot] = None

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all slots except these, which become slots 0, 1, ... in this order; later steps run only these.

        Only slots whose numbers change are copied, so slots should keep their numbers if possible.
        """
        moves = [(source, target) for target, source in enumerate(slots) if source != target]
        if moves and self.cache is not None:
            sources, targets = (self._index(column) for column in zip(*moves, strict=True))
            self.cache.copy(sources, targets, max(self.lengths[source] for source, _ in moves))
            positions = self._step.positions
            positions[targets] = positions[sources]
            self.hidden[targets] = self.hidden[sources]
        self.lengths = [self.lengths[slot] for slot in slots]
        self.prompts = [self.prompts[slot] for slot in slots]

    def slots_for(self, needed: int) -> int:
        """Number of slots to keep if ``needed`` are needed, at most the present number; see ``worthwhile_slots``."""
        return min(worthwhile_slots(needed, self.device), len(self.lengths))

    def _index(self, slots: Sequence[int]) -> torch.Tensor:
        return to_device(list(slots), self.device)

    def _check_occupied(self, slots: Sequence[int]) -> None:
        for slot in slots:
            if not self.lengths[slot]:
                raise ValueError(f"slot {slot} is not occupied; prefill it first")

    def _checked(self, tokens: torch.Tensor) -> torch.Tensor:
        """Check the tokens, and replace those of unoccupied slots by 0."""
        occupied = torch.tensor([length > 0 for length in self.lengths])
        wrong = occupied & ((tokens < 0) | (tokens >= self.vocab_size))
        if wrong.any():
            slot = int(wrong.long().argmax())
            raise ValueError(
                f"token {int(tokens[slot])} of slot {slot} is out of range; tokens go from 0 to {self.vocab_size - 1}"
            )
        return tokens.where(occupied, 0)
