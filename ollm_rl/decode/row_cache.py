"""A key-value cache in which every row stands at a position of its own.

transformers' ``StaticLayer`` keeps one length for all rows; this one scatters at per-row positions and returns the part
of the cache that a step has to read. What a row has not written is hidden by a ready mask.

On a GPU keys and values of all layers lie in one tensor, a stack, or in one for each shape that they have, so that
slots are filled, moved and saved by a few kernels and not by several for each layer.

Letters: G tensors of a stack, S slots, B slots in use by a call, N saved slots, H hidden, L length of the cache that a
step reads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticLayer

from ollm_rl.devices import to_device
from ollm_rl.errors import UsageError

# Devices on which layers share a tensor. On a CPU a kernel's start is nothing, and a copy of more than 32 MiB lies in
# pages fresh from the system, which takes longer than the copy.
STACKED = ("cuda",)
MOVED_BYTES = 2**28  # at once, between slots: a move takes as much again, and beside it a kernel's start is nothing


@dataclass(eq=False)
class EncodedPrompt:
    """One pass's result for a prompt: slots that began from the same one hold the same numbers up to its length."""

    length: int


class Snapshot(NamedTuple):
    """Saved slots: all that it takes to go on from them in any slot of an engine on the same model.

    Attributes:
        states: Keys and values of the model's layers as ``stacked`` orders them, each (G, N, heads, width, head size).
        lengths: Tokens of each, N of them, at most start + width.
        hidden: h_t at their last tokens, (N, H).
        prompts: What they began from, N of them; None where that has been overwritten.
        start: Tokens before those in ``states``, which the slot that goes on must hold already.
    """

    states: list[torch.Tensor]
    lengths: list[int]
    hidden: torch.Tensor
    prompts: list[EncodedPrompt | None]
    start: int = 0

    def select(self, rows: Sequence[int]) -> "Snapshot":
        """A copy of some of the rows, no wider than it must be."""
        index, lengths = to_device(rows, self.hidden.device), [self.lengths[row] for row in rows]
        states = [each[:, index, :, : max(lengths) - self.start] for each in self.states]
        return Snapshot(states, lengths, self.hidden[index], [self.prompts[row] for row in rows], self.start)


@dataclass
class Place:
    """Where a step writes and what it reads; one object for all layers.

    Attributes:
        rows: 0, 1, ..., (B,).
        positions: Of the rows' new tokens, (B,).
        length: L.
        sources: The rows that hold the same prompt, at which a row may read its beginning, (B,).
        shared: Tokens of that beginning, (B,).
    """

    rows: torch.Tensor
    positions: torch.Tensor
    length: int
    sources: torch.Tensor
    shared: torch.Tensor


class RowLayer(StaticLayer):
    """Keys and values of one model layer."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, cache: "RowCache") -> None:
        super().__init__(keys.shape[2])
        self.keys, self.values = keys, values  # (S, heads, max_length, head size)
        self.is_initialized = True
        self._cache = cache

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token a row, (B, heads, 1, head size); return what the rows may read, (B, heads, L, head size)."""
        place = self._cache.place
        self.keys[place.rows, :, place.positions] = key_states[:, :, 0]
        self.values[place.rows, :, place.positions] = value_states[:, :, 0]
        width = len(place.rows)
        return self.keys[:width, :, : place.length], self.values[:width, :, : place.length]

    def get_seq_length(self) -> int:
        """Nothing: positions and masks are given outright."""
        return 0


class RowCache(Cache):
    """The cache of S slots.

    Args:
        shapes: Heads and head size of the keys and of the values of every model layer, in turn.
        num_slots: S.
        max_length: Tokens of a slot.

    Attributes:
        stacks: Each (G, S, heads, max_length, head size); the layers' keys and values are views of them.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        num_slots: int,
        max_length: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.stacks: list[torch.Tensor] = []
        tensors: dict[int, torch.Tensor] = {}
        for places in stack_places(shapes, device):
            heads, size = shapes[places[0]]
            shape = len(places), num_slots, heads, max_length, size
            self.stacks.append(torch.zeros(shape, dtype=dtype, device=device))
            tensors |= {place: self.stacks[-1][row] for row, place in enumerate(places)}
        pairs = range(0, len(tensors), 2)
        super().__init__(layers=[RowLayer(tensors[place], tensors[place + 1], self) for place in pairs])
        nowhere = torch.zeros(0, dtype=torch.long, device=device)
        self.place = Place(nowhere, nowhere, 0, nowhere, nowhere)

    def read(self, slots: torch.Tensor, start: int, end: int) -> list[torch.Tensor]:
        """Copies of some slots' tokens from ``start`` to before ``end``, each (G, B, heads, end - start, head size)."""
        return [stack[:, slots, :, start:end] for stack in self.stacks]

    def write(
        self, slots: torch.Tensor, states: Sequence[torch.Tensor], rows: torch.Tensor, start: int, end: int
    ) -> None:
        """Copy the first tokens of rows of saved states into slots, to where ``read`` had them from."""
        for stack, saved in zip(self.stacks, states, strict=True):
            for part in _parts(stack, len(slots), end - start):
                stack[part][:, slots, :, start:end] = saved[part][:, rows, :, : end - start]

    def copy(self, sources: torch.Tensor, targets: torch.Tensor, width: int) -> None:
        """Copy the first ``width`` tokens of slots to other slots, which may be sources too."""
        for stack in self.stacks:
            for part in _parts(stack, len(targets), width):
                stack[part][:, targets, :, :width] = stack[part][:, sources, :, :width]


def _parts(stack: torch.Tensor, slots: int, width: int) -> Iterator[slice]:
    """The tensors of a stack, so many at once as may be moved of this many slots and tokens."""
    count, _, heads, _, size = stack.shape
    of_one = slots * heads * width * size * stack.itemsize
    at_once = max(1, MOVED_BYTES // max(1, of_one))
    return (slice(start, start + at_once) for start in range(0, count, at_once))


def stack_places(shapes: Sequence[tuple[int, int]], device: torch.device) -> list[list[int]]:
    """Which tensors share a stack: those of one shape, or each its own where nothing is gained."""
    if device.type not in STACKED:
        return [[place] for place in range(len(shapes))]
    places: dict[tuple[int, int], list[int]] = {}
    for place, shape in enumerate(shapes):
        places.setdefault(shape, []).append(place)
    return list(places.values())


def stacked(cache: DynamicCache) -> list[torch.Tensor]:
    """Keys and values of a pass over N prompts as a ``RowCache`` stacks them, each (G, N, heads, width, head size)."""
    tensors = [states for layer in cache.layers for states in (layer.keys, layer.values)]
    places = stack_places([(states.shape[1], states.shape[3]) for states in tensors], tensors[0].device)
    return [torch.stack([tensors[place] for place in each]) if each[1:] else tensors[each[0]][None] for each in places]


def supported_layer_types(backbone: PreTrainedModel) -> list[str]:
    """The model's types of layers, each once.

    Raises:
        UsageError: If its attention takes no ready mask, or masks by itself.
    """
    config = backbone.config.get_text_config()
    if config._attn_implementation not in ("sdpa", "eager"):
        raise UsageError(
            f"attention implementation {config._attn_implementation!r} takes no ready mask; load the model with "
            "attn_implementation='sdpa' or 'eager'"
        )
    layer_types: list[str] = sorted(set(getattr(config, "layer_types", None) or ()))
    unknown = set(layer_types) - {"full_attention", "sliding_attention"}
    # GPT-Neo's local layers mask by the cache's length, which here is not the row's own.
    unknown |= {"local"} & set(getattr(config, "attention_layers", None) or ())
    if unknown:
        raise UsageError(
            f"{type(backbone).__name__} has layers of type {sorted(unknown)[0]!r}; only full and sliding-window "
            "attention are supported"
        )
    return layer_types


def layer_shapes(backbone: PreTrainedModel) -> list[tuple[int, int]]:
    """Heads and head size of the keys and of the values of every layer, in turn, from a pass over one token.

    Raises:
        UsageError: If a layer keeps more than keys and values.
    """
    probe = DynamicCache()
    token = torch.zeros(1, 1, dtype=torch.long, device=backbone.device)
    with torch.no_grad():
        backbone.base_model(input_ids=token, past_key_values=probe, use_cache=True)
    if any(type(layer) is not DynamicLayer for layer in probe.layers):
        raise UsageError(f"{type(backbone).__name__} keeps more than keys and values; it is not supported")
    return [(states.shape[1], states.shape[3]) for layer in probe.layers for states in (layer.keys, layer.values)]


def step_masks(
    place: Place, dtype: torch.dtype, *, window: int | None, layer_types: Sequence[str]
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The ready mask of a step, (B, 1, 1, L), added to the scores; one for each type of layer where they differ.

    Args:
        place: Of the step.
        dtype: Of the scores.
        window: Tokens that sliding layers see.
        layer_types: The model's, each once; none named means that a window holds for all layers.
    """
    keys = torch.arange(place.length, device=place.positions.device)
    last = place.positions[:, None]

    def added(visible: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
        return mask[:, None, None]

    full = keys <= last
    if window is None or list(layer_types) == ["full_attention"]:
        return added(full)
    sliding = full & (keys > last - window)
    if not layer_types:
        return added(sliding)
    return {"full_attention": added(full), "sliding_attention": added(sliding)}
