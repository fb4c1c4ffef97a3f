"""The model's part of decoding: passes over prompts, and steps of one token in every slot, compiled and recorded.

What a step reads and writes stays where it is, so that CUDA graphs may hold it.

Letters: S slots, B slots in use by a call, H hidden, L length of the cache that a step reads.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ollm_rl.decode.graphs import Graphs
from ollm_rl.decode.joint_products import joined, joint_products
from ollm_rl.decode.row_attention import reading_once, reads_live_part
from ollm_rl.decode.row_cache import EncodedPrompt, Place, RowCache, layer_shapes, step_masks, supported_layer_types
from ollm_rl.decode.shared_prompts import SharedPrompts

BUCKET = 32  # a step reads the cache up to the longest slot, rounded up to this many tokens, where it must read it all

Choose = Callable[[torch.Tensor], torch.Tensor]  # h_t of slots, (B, H), to their next tokens, (B,)


class ModelStep:
    """One model on S slots.

    Args:
        backbone: The model.
        num_slots: S.
        max_length: Tokens that a slot can hold.
        compiled: Compile steps and passes over prompts.

    Attributes:
        cache: Keys and values; None until ``allocate``.
        tokens: The next token of every slot, (S,), which a step reads; and so
        positions: where it stands, (S,).
        hidden: h_t of every slot, (S, H), which a step writes.
        slot_bytes: Memory of one slot's keys and values.

    Raises:
        UsageError: If the architecture's attention or cache is not supported.
    """

    def __init__(self, backbone: PreTrainedModel, num_slots: int, max_length: int, *, compiled: bool) -> None:
        self._layer_types = supported_layer_types(backbone)
        self._config = config = backbone.config.get_text_config()
        self._window: int | None = getattr(config, "sliding_window", None)
        self._shapes = layer_shapes(backbone)
        self._backbone, self._max_length, self._compiled = backbone, max_length, compiled
        self._model: Any = torch.compile(backbone.base_model) if compiled else backbone.base_model
        self._reads_live_part = reads_live_part(backbone)
        self._bucket = max_length if self._reads_live_part else BUCKET
        device = backbone.device
        # On a CPU one large product is not faster.
        self._products = joint_products(backbone) if device.type == "cuda" else []
        self._graphs = Graphs(device)
        self._shared_prompts = SharedPrompts(num_slots, device)
        self._rows = torch.arange(num_slots, device=device)
        self.cache: RowCache | None = None
        self.tokens, self.positions = torch.zeros(2, num_slots, dtype=torch.long, device=device)
        self.hidden = torch.zeros(num_slots, config.hidden_size, dtype=backbone.dtype, device=device)
        self.slot_bytes = sum(heads * size for heads, size in self._shapes) * max_length * backbone.dtype.itemsize

    def allocate(self, num_slots: int) -> RowCache:
        """The cache, made for so many slots where there is none yet."""
        if self.cache is None:
            dtype, device = self._backbone.dtype, self._backbone.device
            self.cache = RowCache(self._shapes, num_slots, self._max_length, dtype=dtype, device=device)
        return self.cache

    def free(self) -> None:
        """Give the memory of the cache and the graphs back."""
        device = self._backbone.device
        self.cache, self._graphs = None, Graphs(device)
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def read(self, input_ids: torch.Tensor, **inputs: Any) -> BaseModelOutputWithPast:
        """A pass over prompts, arguments and result as of the model without its head."""
        if self._compiled:
            _compile_for_any((0, 1), input_ids)
        with joined(self._products):
            output: BaseModelOutputWithPast = self._model(input_ids=input_ids, **inputs)
        return output

    def step(self, count: int, longest: int) -> None:
        """Run the model on ``tokens`` in the first slots.

        Args:
            count: Slots.
            longest: Tokens of the longest of them.
        """
        length = self._read_length(longest)
        self._graphs.run((count, length), partial(self._advance, count, length))

    def turns(
        self, choose: Choose, going: torch.Tensor, longest: int, turns: int, moved: Sequence[torch.Tensor]
    ) -> None:
        """Some turns without a return to the host; arguments as of ``DecodeEngine.run``, (B,) of ``going``."""
        count = len(going)
        moved = (self.positions, self.hidden, going, *moved)
        for turn in range(turns):
            # Slots that end within the turns stay where they are, so no position passes the longest slot's.
            length = self._read_length(min(longest + turn, self._max_length - 1))
            self._graphs.run((choose, count, length), partial(self._take_turn, choose, going, length), moved)

    def note_prompts(self, prompts: Sequence[EncodedPrompt | None]) -> None:
        """Let slots that began from one prompt read it in one place; before a step.

        Args:
            prompts: What each slot holds; None where that is nothing.
        """
        if self._reads_live_part:
            self._shared_prompts.update(prompts)

    @torch.no_grad()
    def _take_turn(self, choose: Choose, going: torch.Tensor, length: int) -> None:
        count = len(going)
        self.tokens[:count] = choose(self.hidden[:count])
        self._advance(count, length)
        self.positions[:count] += going

    @torch.no_grad()
    def _advance(self, count: int, length: int) -> None:
        """A step of the first ``count`` slots that reads L tokens."""
        assert self.cache is not None
        sources, shared = self._shared_prompts.sources[:count], self._shared_prompts.shared[:count]
        place = self.cache.place = Place(self._rows[:count], self.positions[:count], length, sources, shared)
        masks = step_masks(place, self._backbone.dtype, window=self._window, layer_types=self._layer_types)
        input_ids, position_ids = self.tokens[:count, None], place.positions[:, None]
        if self._compiled:
            each = masks.values() if isinstance(masks, dict) else [masks]
            _compile_for_any(0, input_ids, position_ids, place.rows, place.positions, sources, shared, *each)
        with reading_once(self._config, place), joined(self._products):
            output = self._model(
                input_ids=input_ids,
                attention_mask=masks,
                position_ids=position_ids,
                past_key_values=self.cache,
                use_cache=True,
            )
        self.hidden[:count] = output.last_hidden_state[:, 0]

    def _read_length(self, longest: int) -> int:
        """L of a step in which the longest slot holds this many tokens before it."""
        return min(self._max_length, (longest // self._bucket + 1) * self._bucket)


def _compile_for_any(dimensions: int | tuple[int, ...], *tensors: torch.Tensor) -> None:
    """Let one compilation serve all sizes of these dimensions.

    With ``dynamic=True`` in their place every size of the cache would vary too, and compiling take twice as long.
    """
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, dimensions)
