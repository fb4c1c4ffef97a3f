"""Runs the model for decoding: passes over prompts, and steps of one token in every slot, compiled and recorded.

The tensors that a step reads and writes keep their addresses, because CUDA graphs store them.

Letters: S slots, B slots in use by a call, H hidden, L length of the cache that a step reads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ollm_rl.backbones.fused_norms import fused_norms
from ollm_rl.backbones.plans import without_plans
from ollm_rl.backbones.replaced import replaced
from ollm_rl.decode.compiled_layers import compiled_layers
from ollm_rl.decode.fused_attention import FusedAttention
from ollm_rl.decode.graphs import Graphs
from ollm_rl.decode.joint_products import joined, joint_products
from ollm_rl.decode.lean_model import LeanModel
from ollm_rl.decode.live_chunks import CHUNK, LiveChunks
from ollm_rl.decode.lora_layers import LoraLayers
from ollm_rl.decode.prompt_attention import is_causal, use_causal_attention
from ollm_rl.decode.row_attention import reads_live_part, use_row_attention
from ollm_rl.decode.row_cache import (
    EncodedPrompt,
    FirstPass,
    RowCache,
    StepLayout,
    step_masks,
    supported_layer_types,
)
from ollm_rl.decode.shared_prompts import SharedPrompts

Choose = Callable[[torch.Tensor], torch.Tensor]  # h_t of slots, (B, H) -> their next tokens, (B,)


class Shortcuts(NamedTuple):
    """What computes steps in less time than the model as it is.

    Attributes:
        in_chunks: Whether the cache stores keys and values in chunks.
        lean: In place of the model, with a cache in chunks or with ``fused``. It is not compiled.
        fused: The attention of all layers. It needs no mask, and is not for compiled layers.
    """

    in_chunks: bool = False
    lean: LeanModel | None = None
    fused: Sequence[FusedAttention] = ()


NO_SHORTCUTS = Shortcuts()


class ModelStep:
    """One model on S slots.

    Args:
        backbone: The model.
        num_slots: S.
        max_length: Maximum number of tokens in a slot.
        compiled: Whether to compile steps and passes over prompts.
        seen: A pass of the model, from which sizes are taken.
        shortcuts: What steps are computed by, where it is not by the model as it is.

    Attributes:
        cache: Keys and values; None until ``allocate``.
        tokens: Next token of every slot, (S,); read by a step.
        positions: Position of that token, (S,); read by a step.
        hidden: h_t of every slot, (S, H); written by a step.
        token_bytes: Memory of one token's keys and values.
        slot_bytes: Memory of one slot's.

    Raises:
        UsageError: If the architecture's attention or cache is not supported.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        num_slots: int,
        max_length: int,
        *,
        compiled: bool,
        seen: FirstPass,
        shortcuts: Shortcuts = NO_SHORTCUTS,
    ) -> None:
        self._layer_types = supported_layer_types(backbone)
        self._config = config = backbone.config.get_text_config()
        self._window: int | None = getattr(config, "sliding_window", None)
        device = backbone.device
        self._shapes = seen.shapes
        self._backbone, self._max_length, self._compiled = backbone, max_length, compiled
        self._layers = compiled_layers(backbone) if compiled else None
        whole = compiled and self._layers is None
        self._model: Any = torch.compile(backbone.base_model) if whole else backbone.base_model
        self._is_causal = compiled and is_causal(backbone, self._window, self._layer_types, max_length)
        self._reads_live_part = reads_live_part(backbone)
        self._in_chunks, self._lean, self._fused = shortcuts
        self._width = -(-max_length // CHUNK) * CHUNK if self._in_chunks else max_length
        # Without the row kernel a step reads the cache up to the longest slot, rounded up to a multiple.
        self._bucket = self._width if self._reads_live_part else CHUNK
        # On a CPU one large matrix product is not faster.
        self._products = joint_products(backbone) if device.type == "cuda" else []
        self._lora = LoraLayers(backbone)
        # What is compiled is fused there.
        self._norms = [] if compiled else fused_norms(backbone.base_model)
        self._graphs = Graphs(device)
        self._shared_prompts = SharedPrompts(num_slots, device)
        self._rows = torch.arange(num_slots, device=device)
        self.cache: RowCache | None = None
        self.tokens, self.positions = torch.zeros(2, num_slots, dtype=torch.long, device=device)
        self.hidden = torch.zeros(num_slots, seen.hidden_states.shape[-1], dtype=backbone.dtype, device=device)
        self.token_bytes = sum(heads * size for heads, size in self._shapes) * backbone.dtype.itemsize
        self.slot_bytes = self.token_bytes * self._width

    def allocate(self, num_slots: int) -> RowCache:
        """Return the cache; allocate it for ``num_slots`` slots if there is none yet."""
        if self.cache is None:
            dtype, device = self._backbone.dtype, self._backbone.device
            self.cache = RowCache(
                self._shapes, num_slots, self._width, dtype=dtype, device=device, in_chunks=self._in_chunks
            )
        return self.cache

    def free(self) -> None:
        """Release the memory of the cache and the graphs."""
        device = self._backbone.device
        self.cache, self._graphs = None, Graphs(device)
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def read(self, input_ids: torch.Tensor, past_key_values: Cache, **inputs: Any) -> BaseModelOutputWithPast:
        """A pass over prompts; arguments and result are those of the model without its head."""
        if self._compiled:
            _compile_for_any((0, 1), input_ids)
        self._lora.refresh()
        begins = self._is_causal and not past_key_values.get_seq_length()
        attention = use_causal_attention(self._config) if begins else nullcontext()
        with attention, without_plans(), self._fast_layers(step=False):
            output: BaseModelOutputWithPast = self._model(
                input_ids=input_ids, past_key_values=past_key_values, **inputs
            )
        return output

    def step(self, count: int, longest: int) -> None:
        """Run the model on ``tokens`` in the first slots.

        Args:
            count: Number of slots.
            longest: Number of tokens in the longest of them.
        """
        length = self._read_length(longest)
        self._refresh()
        self._graphs.run((count, length), partial(self._advance, count, length))

    def _refresh(self) -> None:
        self._lora.refresh()
        if self._lean:
            self._lean.refresh()

    def turns(
        self, choose: Choose, active: torch.Tensor, longest: int, turns: int, mutated: Sequence[torch.Tensor]
    ) -> None:
        """Several turns without a return to the host; arguments as for ``DecodeEngine.run``, ``active`` is (B,)."""
        count = len(active)
        self._refresh()
        mutated = (self.positions, self.hidden, active, *mutated)
        for turn in range(turns):
            # Slots that end during the turns do not advance, so no position exceeds the longest slot's.
            length = self._read_length(min(longest + turn, self._max_length - 1))
            self._graphs.run((choose, count, length), partial(self._take_turn, choose, active, length), mutated)

    def note_prompts(self, prompts: Sequence[EncodedPrompt | None]) -> None:
        """Let slots that share a prompt read it from one slot. Call this before a step.

        Args:
            prompts: Prompt of each slot; None for an empty slot.
        """
        if self._reads_live_part:
            self._shared_prompts.update(prompts)

    @torch.no_grad()
    def _take_turn(self, choose: Choose, active: torch.Tensor, length: int) -> None:
        count = len(active)
        self.tokens[:count] = choose(self.hidden[:count])
        self._advance(count, length)
        self.positions[:count] += active

    @torch.no_grad()
    def _advance(self, count: int, length: int) -> None:
        """A step of the first ``count`` slots that reads L tokens of the cache."""
        assert self.cache is not None
        sources, shared = self._shared_prompts.sources[:count], self._shared_prompts.shared[:count]
        rows, positions = self._rows[:count], self.positions[:count]
        chunks = LiveChunks(positions, length, self._width) if self._in_chunks else None
        layout = StepLayout(rows, positions, length, sources, shared, chunks)
        self.cache.lay_out(layout)
        masks = self._masks(layout)
        if self._lean and not isinstance(masks, dict):  # one mask for all layers, or none
            with replaced(self._lora.forwards):
                self.hidden[:count] = self._lean(self.tokens[:count], layout, masks, self.cache)
            return
        input_ids, position_ids = self.tokens[:count, None], layout.positions[:, None]
        if self._compiled:
            all_masks = masks.values() if isinstance(masks, dict) else [masks]
            _compile_for_any(0, input_ids, position_ids, layout.rows, layout.positions, sources, shared, *all_masks)
        with use_row_attention(self._config, layout), self._fast_layers(step=True):
            output = self._model(
                input_ids=input_ids,
                attention_mask=masks,
                position_ids=position_ids,
                past_key_values=self.cache,
                use_cache=True,
            )
        self.hidden[:count] = output.last_hidden_state[:, 0]

    @contextmanager
    def _fast_layers(self, *, step: bool) -> Iterator[None]:
        """Within this context the model's parts are computed by what takes less time than their own code."""
        compiled = self._layers.used(step=step) if self._layers else nullcontext()
        attention = [(fused.layer, fused.forward) for fused in self._fused] if step else []
        with joined(self._products), replaced([*self._lora.forwards, *self._norms, *attention]), compiled:
            yield

    def _masks(self, layout: StepLayout) -> torch.Tensor | dict[str, torch.Tensor] | None:
        """What ``step_masks`` makes; None where attention needs no mask."""
        if self._fused:
            return None
        return step_masks(layout, self._backbone.dtype, window=self._window, layer_types=self._layer_types)

    def _read_length(self, longest: int) -> int:
        """L of a step before which the longest slot holds ``longest`` tokens."""
        return min(self._width, (longest // self._bucket + 1) * self._bucket)


def _compile_for_any(dimensions: int | tuple[int, ...], *tensors: torch.Tensor) -> None:
    """Let one compilation serve all sizes of these dimensions.

    With ``dynamic=True`` instead, the sizes of the cache would be dynamic too, and compiling would take twice as long.
    """
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, dimensions)
