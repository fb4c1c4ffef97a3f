"""A key-value cache in which every row has its own position.

transformers' ``StaticLayer`` keeps one length for all rows. This one writes at per-row positions and returns the part
of the cache that a step must read. A prepared mask hides what a row has not written.

On a GPU the keys and values of all layers share one tensor, a stack, or one per shape. So a few kernels fill, move and
save slots, instead of several per layer.

Letters: G tensors of a stack, S slots, B slots in use by a call, N saved slots, H hidden, L length of the cache that a
step reads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticLayer

from ollm_rl.decode.chunked_cache import index_of, set_tokens, tokens_of
from ollm_rl.decode.live_chunks import CHUNK, LiveChunks
from ollm_rl.decode.memory import zeros
from ollm_rl.decode.named_attention import hands_over_cache
from ollm_rl.devices import to_device
from ollm_rl.errors import UsageError

# Devices on which layers share a tensor. On a CPU launching a kernel costs nothing, and a copy of more than 32 MiB
# needs new pages from the system, which takes longer than the copy.
STACKED = ("cuda",)
MOVED_BYTES = 2**28  # per copy between slots: bounds its temporary memory, and launching its kernel still costs little


@dataclass(eq=False)
class EncodedPrompt:
    """A prompt encoded in one pass. Slots filled from the same object hold equal values up to its length."""

    length: int


class Snapshot(NamedTuple):
    """Saved slots, from which any slot of an engine on the same model can continue.

    Attributes:
        states: Keys and values of the model's layers as ``stacked`` orders them, each (G, N, heads, width, head size).
        lengths: Number of tokens in each of the N slots, at most the width.
        hidden: h_t at their last tokens, (N, H).
        prompts: Encoded prompt of each of the N slots; None if it has been overwritten.
    """

    states: list[torch.Tensor]
    lengths: list[int]
    hidden: torch.Tensor
    prompts: list[EncodedPrompt | None]

    def select(self, rows: Sequence[int]) -> "Snapshot":
        """A copy of some rows, cut to their greatest length."""
        index, lengths = to_device(rows, self.hidden.device), [self.lengths[row] for row in rows]
        states = [stack[:, index, :, : max(lengths)] for stack in self.states]
        return Snapshot(states, lengths, self.hidden[index], [self.prompts[row] for row in rows])


@dataclass
class StepLayout:
    """Where a step writes and reads in the cache; one object for all layers.

    Attributes:
        rows: 0, 1, ..., (B,).
        positions: Positions of the rows' new tokens, (B,).
        length: L.
        sources: Row with the same prompt from which each row may read its beginning, (B,).
        shared: Number of tokens of that beginning, (B,).
        chunks: What the rows hold, if keys and values are stored in chunks.
    """

    rows: torch.Tensor
    positions: torch.Tensor
    length: int
    sources: torch.Tensor
    shared: torch.Tensor
    chunks: LiveChunks | None = None


class RowLayer(StaticLayer):
    """Keys and values of one model layer.

    Args:
        keys: (S, heads, max_length, head size), or in chunks.
        values: As ``keys``.
        states: Both as one tensor, (2, S, ...); None if they are not neighbours in a stack.
    """

    layout: StepLayout  # set by ``RowCache.lay_out`` before a step

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, states: torch.Tensor | None = None) -> None:
        super().__init__(values.shape[2:-1].numel())
        self.keys, self.values, self.states = keys, values, states
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token per row, (B, heads, 1, head size); return what rows may read, (B, heads, L, head size).

        Those in chunks are returned as ``LiveChunks`` reads them, (B, heads, L / C, C, head size).
        """
        layout, chunks = self.layout, self.layout.chunks
        num_rows, length = len(layout.rows), layout.length
        where: Any = (layout.rows, slice(None), layout.positions)
        if chunks is not None:
            length, where = length // CHUNK, (layout.rows, slice(None), chunks.numbers, chunks.offsets)
        self.keys[where], self.values[where] = key_states[:, :, 0], value_states[:, :, 0]
        return self.keys[:num_rows, :, :length], self.values[:num_rows, :, :length]

    def get_seq_length(self) -> int:
        """Always 0, because positions and masks are passed explicitly."""
        return 0


class RowCache(Cache):
    """The cache of S slots.

    Args:
        shapes: Number of heads and head size of every model layer's keys and values, alternately.
        num_slots: S.
        max_length: Maximum number of tokens in a slot.
        in_chunks: Whether keys and values are stored in chunks, keys by feature, as ``LiveChunks`` reads them.

    Attributes:
        stacks: Each (G, S, heads, max_length, head size), in chunks (G, S, heads, max_length / C, C, head size) with
            heads behind chunks in memory; the layers' keys and values are views of them.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        num_slots: int,
        max_length: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        in_chunks: bool = False,
    ) -> None:
        self.stacks: list[torch.Tensor] = []
        tensors: dict[int, torch.Tensor] = {}
        pairs: dict[int, torch.Tensor] = {}
        for group in stack_groups(shapes, device):
            heads, size = shapes[group[0]]
            if in_chunks:
                keys = group[0] % 2 == 0
                sizes = (size, CHUNK) if keys else (CHUNK, size)
                stack = zeros([len(group), num_slots, max_length // CHUNK, heads, *sizes], dtype, device)
                stack = (stack.transpose(-1, -2) if keys else stack).transpose(2, 3)
            else:
                stack = zeros([len(group), num_slots, heads, max_length, size], dtype, device)
            self.stacks.append(stack)
            tensors |= {index: stack[row] for row, index in enumerate(group)}
            pairs |= {index: stack[row : row + 2] for row, index in enumerate(group) if index + 1 in group}
        key_indices = range(0, len(tensors), 2)
        layers = [RowLayer(tensors[index], tensors[index + 1], pairs.get(index)) for index in key_indices]
        super().__init__(layers=layers)

    def lay_out(self, layout: StepLayout) -> None:
        """Say where the next step writes and reads.

        Layers do not refer to their cache: in such a circle only Python's garbage collector would free its memory.
        """
        for layer in self.layers:
            layer.layout = layout

    def read(self, slots: torch.Tensor, width: int) -> list[torch.Tensor]:
        """Copies of the first tokens of some slots, each (G, B, heads, width, head size)."""
        return [tokens_of(stack, slots, width) for stack in self.stacks]

    def write(self, slots: torch.Tensor, states: Sequence[torch.Tensor], rows: torch.Tensor, width: int) -> None:
        """Copy the first tokens of rows of saved states, as ``read`` returns them, to slots."""
        for stack, saved in zip(self.stacks, states, strict=True):
            for part in _parts(stack, len(slots), width):
                set_tokens(stack[part], slots, width, saved[part][:, rows, :, :width])

    def read_tokens(self, slots: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """Copies of N tokens, each named by its slot and its position in it, (N,): (N, G, heads, head size) each."""
        return [stack[index_of(stack, slots, positions)] for stack in self.stacks]

    def write_tokens(self, slots: torch.Tensor, positions: torch.Tensor, states: Sequence[torch.Tensor]) -> None:
        """Overwrite what ``read_tokens`` reads."""
        for stack, saved in zip(self.stacks, states, strict=True):
            stack[index_of(stack, slots, positions)] = saved

    def copy(self, sources: torch.Tensor, targets: torch.Tensor, width: int) -> None:
        """Copy the first ``width`` tokens of slots to other slots; a slot may be both source and target."""
        for stack in self.stacks:
            for part in _parts(stack, len(targets), width):
                set_tokens(stack[part], targets, width, tokens_of(stack[part], sources, width))


def _parts(stack: torch.Tensor, slots: int, width: int) -> Iterator[slice]:
    """Slices of a stack's tensors, as large as MOVED_BYTES allows for copies of this many slots and tokens."""
    num_tensors, _, heads, *_, size = stack.shape
    tensor_bytes = slots * heads * width * size * stack.itemsize
    part_size = max(1, MOVED_BYTES // max(1, tensor_bytes))
    return (slice(start, start + part_size) for start in range(0, num_tensors, part_size))


def stack_groups(shapes: Sequence[tuple[int, int]], device: torch.device) -> list[list[int]]:
    """Indices of the tensors in each stack: those of one shape, or one tensor per stack on devices without stacking."""
    if device.type not in STACKED:
        return [[index] for index in range(len(shapes))]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    return list(groups.values())


def stored_in_chunks(backbone: PreTrainedModel, shapes: Sequence[tuple[int, int]]) -> bool:
    """Whether the cache may store the model's keys and values in chunks, because attention reads ``LiveChunks`` of it.

    Sums of rows read keys that heads share once for every head, so these stay with torch's attention.
    """
    plain = backbone.device.type == "cpu" and "cpu" not in STACKED and backbone.dtype == torch.float32
    heads = getattr(backbone.config.get_text_config(), "num_attention_heads", None)
    unshared = all(key_heads == heads for key_heads, _ in shapes)
    return plain and unshared and hands_over_cache(backbone)


def stacked(cache: DynamicCache) -> list[torch.Tensor]:
    """Keys and values of a pass over N prompts as a ``RowCache`` stacks them, each (G, N, heads, width, head size)."""
    tensors = [states for layer in cache.layers for states in (layer.keys, layer.values)]
    groups = stack_groups([(states.shape[1], states.shape[3]) for states in tensors], tensors[0].device)
    return [
        torch.stack([tensors[index] for index in group]) if group[1:] else tensors[group[0]][None] for group in groups
    ]


def supported_layer_types(backbone: PreTrainedModel) -> list[str]:
    """The types of the model's layers, each once.

    Raises:
        UsageError: If the model's attention does not accept a prepared mask, or does its own masking.
    """
    config = backbone.config.get_text_config()
    if config._attn_implementation not in ("sdpa", "eager"):
        raise UsageError(
            f"attention implementation {config._attn_implementation!r} does not accept a prepared mask; load the model "
            "with attn_implementation='sdpa' or 'eager'"
        )
    layer_types: list[str] = sorted(set(getattr(config, "layer_types", None) or ()))
    unknown = set(layer_types) - {"full_attention", "sliding_attention"}
    # GPT-Neo's local layers mask by the length of the cache, which here differs from the rows' lengths.
    unknown |= {"local"} & set(getattr(config, "attention_layers", None) or ())
    if unknown:
        raise UsageError(
            f"{type(backbone).__name__} has layers of type {sorted(unknown)[0]!r}; only full and sliding-window "
            "attention are supported"
        )
    return layer_types


class FirstPass(NamedTuple):
    """A pass over B rows of T tokens, which shows what a model keeps and returns.

    Attributes:
        cache: Keys and values of every layer.
        hidden_states: What the output head reads, (B, T, H).
    """

    cache: DynamicCache
    hidden_states: torch.Tensor

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Number of heads and head size of every layer's keys and values, alternately."""
        tensors = [states for layer in self.cache.layers for states in (layer.keys, layer.values)]
        return [(states.shape[1], states.shape[3]) for states in tensors]


@torch.no_grad()
def first_pass(backbone: PreTrainedModel, input_ids: torch.Tensor) -> FirstPass:
    """Run a model without its head over token ids, (B, T), with an empty cache that keeps all tokens.

    Raises:
        UsageError: If the model keeps no keys and values, or a layer keeps more than these.
    """
    cache = DynamicCache()
    output = backbone.base_model(input_ids=input_ids, past_key_values=cache, use_cache=True)
    if not cache.layers:
        raise UsageError(f"{type(backbone).__name__} keeps no keys and values of past tokens; it is not supported")
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        raise UsageError(f"{type(backbone).__name__} keeps more than keys and values; it is not supported")
    return FirstPass(cache, output.last_hidden_state)


def step_masks(
    layout: StepLayout, dtype: torch.dtype, *, window: int | None, layer_types: Sequence[str]
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The mask of a step, (B, 1, 1, L), added to the scores; one for each type of layer if they differ.

    Args:
        layout: Layout of the step.
        dtype: Type of the scores.
        window: Number of tokens visible to sliding-window layers.
        layer_types: The model's types of layers, each once. If there are none, a window applies to all layers.
    """
    keys = torch.arange(layout.length, device=layout.positions.device)
    last = layout.positions[:, None]

    def additive_mask(visible: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
        return mask[:, None, None]

    full = keys <= last
    if window is None or list(layer_types) == ["full_attention"]:
        return additive_mask(full)
    sliding = full & (keys > last - window)
    if not layer_types:
        return additive_mask(sliding)
    return {"full_attention": additive_mask(full), "sliding_attention": additive_mask(sliding)}
