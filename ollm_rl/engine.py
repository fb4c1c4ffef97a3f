"""The decode engine: B slots over an unmodified transformers model, each at its own position.

A slot holds the keys and values of one sequence. ``prefill`` fills slots from prompts, ``step`` appends one token to
every occupied slot and returns h_t, the tensor that the output head reads. A slot's result does not depend on the
others beyond floating-point noise. On CUDA a step is a recorded graph, one for each number of slots and length: the
Python of a transformers model costs ten times the run time of its kernels.

Letters: S slots, B slots in use by a call, T tokens, H hidden, L length of the cache that a step reads.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticLayer

from ollm_rl.backbones import context_length

BUCKET = 32  # a step reads the cache up to the longest slot, rounded up to this many tokens
KEEP_SHARE = 0.85  # on a CPU, slots are dropped once no more than this share is needed: each drop copies the cache


class RowLayer(StaticLayer):
    """Keys and values of one model layer; every row writes at its own position (``StaticLayer`` has one for all)."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__(keys.shape[2])
        self.keys, self.values = keys, values  # (S, heads, max_length, head size)
        self.is_initialized = True
        self.positions = torch.empty(0)  # (B,), set by the engine before a step
        self.length = 0  # L

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token a row, (B, heads, 1, head size); return what the rows may read, (B, heads, L, head size)."""
        rows = torch.arange(len(self.positions), device=self.positions.device)
        self.keys[rows, :, self.positions] = key_states[:, :, 0]
        self.values[rows, :, self.positions] = value_states[:, :, 0]
        width = len(self.positions)
        return self.keys[:width, :, : self.length], self.values[:width, :, : self.length]

    def get_seq_length(self) -> int:
        """Nothing: positions and masks are given outright."""
        return 0


class Graph(NamedTuple):
    """A recorded step with the memory it reads, tokens and positions (S,), and writes, h_t (S, H)."""

    recorded: torch.cuda.CUDAGraph
    tokens: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor


class DecodeEngine:
    """Batched decoding on any transformers causal language model with full or sliding-window attention.

    Args:
        backbone: The model; its weights are read at every call, so a policy that lives in it (a LoRA) may move.
        num_slots: S, at most; ``restart`` and ``keep`` go on with fewer.
        max_length: Tokens that a slot can hold, prompt and completion together.

    Raises:
        ValueError: If the architecture's attention or cache is not supported, or the model's context is shorter.
    """

    def __init__(self, backbone: PreTrainedModel, num_slots: int, max_length: int) -> None:
        config = backbone.config.get_text_config()
        if config._attn_implementation not in ("sdpa", "eager"):
            raise ValueError(
                f"attention implementation {config._attn_implementation!r} takes no ready mask; load the model with "
                "attn_implementation='sdpa' or 'eager'"
            )
        self.layer_types: list[str] = sorted(set(getattr(config, "layer_types", None) or ()))
        unknown = set(self.layer_types) - {"full_attention", "sliding_attention"}
        # GPT-Neo's local layers mask by the cache's length, which here is not the row's own.
        unknown |= {"local"} & set(getattr(config, "attention_layers", None) or ())
        if unknown:
            raise ValueError(
                f"{type(backbone).__name__} has layers of type {sorted(unknown)[0]!r}; only full and sliding-window "
                "attention are supported"
            )
        context = context_length(backbone)
        if max_length > context:
            raise ValueError(
                f"max_length={max_length} is more than the backbone's context of {context} tokens; lower it"
            )
        if num_slots < 1:
            raise ValueError(f"num_slots={num_slots} must be at least 1")
        self.backbone = backbone
        self.window: int | None = getattr(config, "sliding_window", None)
        self.eager = config._attn_implementation == "eager"
        self.num_slots, self.max_length = num_slots, max_length
        self.device = backbone.device
        self.cache: Cache | None = None
        self.lengths = [0] * num_slots  # tokens in each slot; 0: not occupied
        self._graphs: dict[tuple[int, int], Graph] = {}

    def restart(self, num_slots: int) -> None:
        """Forget what the slots hold and go on with this many of them, at most those the engine was made with."""
        if not 0 < num_slots <= self.num_slots:
            raise ValueError(
                f"num_slots={num_slots} is not within 1 to {self.num_slots}, what the engine was made with"
            )
        self.lengths = [0] * num_slots

    @torch.no_grad()
    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Fill slots from prompts; equal prompts are computed once.

        Args:
            slots: Their numbers, B of them; what they held is forgotten.
            prompts: Token ids, one prompt a slot, none empty.

        Returns:
            h at every prompt's last token, (B, H).

        Raises:
            ValueError: If a prompt is empty or fills a slot whole.
        """
        for prompt in prompts:
            if not 0 < len(prompt) < self.max_length:
                raise ValueError(
                    f"a prompt of {len(prompt)} tokens does not fit a slot of {self.max_length} with room to go on; "
                    "shorten it or raise max_length"
                )
        unique = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        source = torch.tensor([unique[tuple(prompt)] for prompt in prompts], device=self.device)
        rows = [torch.tensor(prompt) for prompt in unique]
        # Padding stands on the right: a slot's own tokens overwrite it before it could ever be visible.
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = torch.arange(input_ids.shape[1], device=self.device) < lengths[:, None]
        # Without a config the cache keeps every key, also those that a sliding window would drop.
        filled = DynamicCache()
        output = self.backbone.base_model(
            input_ids=input_ids, attention_mask=mask.long(), past_key_values=filled, use_cache=True
        )
        self._store(filled, torch.tensor(slots, device=self.device), source)
        for slot, prompt in zip(slots, prompts, strict=True):
            self.lengths[slot] = len(prompt)
        last = output.last_hidden_state[torch.arange(len(rows), device=self.device), lengths - 1]
        return last[source]

    @torch.no_grad()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token to every slot.

        Args:
            tokens: Token ids (S,); those of unoccupied slots do not matter.

        Returns:
            h at the new tokens, (S, H); rows of unoccupied slots mean nothing.

        Raises:
            ValueError: If an occupied slot is full.
        """
        if self.cache is None or len(tokens) != len(self.lengths):
            raise ValueError(f"step got {len(tokens)} tokens for {len(self.lengths)} slots; prefill first, one a slot")
        longest = max(self.lengths)
        if longest >= self.max_length:
            raise ValueError(f"slot {self.lengths.index(longest)} is full at {longest} tokens; release it")
        positions = torch.tensor(self.lengths, device=self.device)
        length = min(self.max_length, (longest // BUCKET + 1) * BUCKET)
        run = self._replay if self.device.type == "cuda" else self._forward
        hidden = run(tokens, positions, length)
        self.lengths = [count + 1 if count else 0 for count in self.lengths]
        return hidden

    def free(self) -> None:
        """Give the memory of the cache back and forget what the slots hold; the next prefill takes memory anew."""
        self.cache, self._graphs = None, {}
        self.lengths = [0] * self.num_slots

    def release(self, slot: int) -> None:
        """Give a slot up; it costs time in every step until it is filled again or dropped by ``keep``."""
        self.lengths[slot] = 0

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all slots but these, which become slots 0, 1, ... in this order; later steps are as small as they."""
        index = torch.tensor(slots, device=self.device)
        for layer in self.cache.layers if self.cache is not None else ():
            for states in (layer.keys, layer.values):
                states[: len(slots)] = states[index]
        self.lengths = [self.lengths[slot] for slot in slots]

    def enough(self, needed: int) -> int:
        """Number of slots worth going on with where so many are needed; at most as many as there are.

        Dropping slots costs a copy of the cache on a CPU and a new graph on CUDA, so there it halves at the least.
        """
        slots = len(self.lengths)
        if self.device.type != "cuda":
            return needed if needed <= KEEP_SHARE * slots else slots
        while slots > 1 and (slots + 1) // 2 >= needed:
            slots = (slots + 1) // 2
        return slots

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor, length: int) -> torch.Tensor:
        """One step of the model: tokens and their positions (S,) -> h_t (S, H)."""
        assert self.cache is not None
        for layer in self.cache.layers:
            layer.positions, layer.length = positions, length
        output = self.backbone.base_model(
            input_ids=tokens[:, None],
            attention_mask=self._masks(positions, length),
            position_ids=positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden: torch.Tensor = output.last_hidden_state[:, 0]
        return hidden

    def _replay(self, tokens: torch.Tensor, positions: torch.Tensor, length: int) -> torch.Tensor:
        """``_forward`` as a CUDA graph."""
        key = (len(tokens), length)
        if key not in self._graphs:
            self._graphs[key] = self._record(tokens.clone(), positions.clone(), length)
        graph = self._graphs[key]
        graph.tokens.copy_(tokens)
        graph.positions.copy_(positions)
        graph.recorded.replay()
        return graph.hidden.clone()  # the next replay writes to the same memory

    def _record(self, tokens: torch.Tensor, positions: torch.Tensor, length: int) -> "Graph":
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries allocate at their first call, which a recording must not hold
            self._forward(tokens, positions, length)
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        shared = next(iter(self._graphs.values())).recorded.pool() if self._graphs else None
        with torch.cuda.graph(recorded, pool=shared):
            hidden = self._forward(tokens, positions, length)
        return Graph(recorded, tokens, positions, hidden)

    def _store(self, filled: DynamicCache, slots: torch.Tensor, source: torch.Tensor) -> None:
        """Copy prefilled keys and values into slots; on the first call allocate them."""
        if any(type(layer) is not DynamicLayer for layer in filled.layers):
            raise ValueError(f"{type(self.backbone).__name__} keeps more than keys and values; it is not supported")
        if self.cache is None:
            layers = []
            for layer in filled.layers:
                keys, values = (
                    state.new_zeros(self.num_slots, state.shape[1], self.max_length, state.shape[3])
                    for state in (layer.keys, layer.values)
                )
                layers.append(RowLayer(keys, values))
            self.cache = Cache(layers=layers)
        width = filled.layers[0].keys.shape[2]
        for layer, new in zip(self.cache.layers, filled.layers, strict=True):
            layer.keys[slots, :, :width] = new.keys[source]
            layer.values[slots, :, :width] = new.values[source]

    def _masks(self, positions: torch.Tensor, length: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """The ready mask of a step, (B, 1, 1, L), true or 0 where a key is visible; one for each type of layer."""
        slots = torch.arange(length, device=self.device)
        full = (slots <= positions[:, None])[:, None, None]
        if self.window is None or self.layer_types == ["full_attention"]:
            return self._as_added(full)
        sliding = full & (slots > positions[:, None] - self.window)[:, None, None]
        if not self.layer_types:
            return self._as_added(sliding)
        return {"full_attention": self._as_added(full), "sliding_attention": self._as_added(sliding)}

    def _as_added(self, mask: torch.Tensor) -> torch.Tensor:
        """A boolean mask for SDPA; for eager attention numbers that are added to the scores."""
        if not self.eager:
            return mask
        dtype = self.backbone.dtype
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
