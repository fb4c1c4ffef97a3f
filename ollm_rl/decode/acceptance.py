"""Accepts a model for decoding: steps in two rows of different length must agree with a pass over the whole rows.

Architectures differ in what they do with explicit positions, masks, windows and caches. One that ignores any of these
would decode nonsense without an error.

Letters: R rows, N compared positions of a row, T tokens, H hidden.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from weakref import WeakKeyDictionary, WeakSet

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ollm_rl.backbones.loading import context_length
from ollm_rl.decode.fused_attention import FusedAttention, fused_attention
from ollm_rl.decode.lean_model import LeanModel, lean_model
from ollm_rl.decode.live_chunks import CHUNK
from ollm_rl.decode.row_cache import first_pass, stacked, stored_in_chunks, supported_layer_types
from ollm_rl.decode.step import NO_SHORTCUTS, ModelStep, Shortcuts
from ollm_rl.errors import RunWarning, UsageError, one_line

WIDTH, STEPS = 12, 2  # tokens of the longer row, and how many of them are decoded; the shorter row is half as long
FUSED_BLOCK = 64  # most keys per iteration of ``fused_kernel``
WINDOW = 4  # tokens; a longer window is cut to this for the comparison, so that few tokens go beyond it
# Highest relative error. Rounding in float32 makes 1e-5, in bfloat16 up to 0.1, more where an expert is chosen
# differently; a wrong position or mask makes 0.3 and more of a trained model's hidden states.
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.25

_accepted: WeakSet[PreTrainedModel] = WeakSet()
# Whether `FusedAttention` computes the same, and `LeanModel` with it. A model object is tried once.
_fused: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_lean: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def check_decoding(backbone: PreTrainedModel) -> None:
    """Compare decoding steps with a full pass; a model object is compared only once.

    The first layers are compared, as many as it takes to see every type of layer. Only if they differ or fail, all
    layers decide, because some models cannot run without the others.

    Raises:
        UsageError: If they differ, or the model cannot be run in steps; the message names its class.
    """
    if backbone in _accepted:
        return
    tolerance = _tolerance(backbone)
    config = backbone.config.get_text_config()
    with _changed(config, "sliding_window", WINDOW):
        with _changed(config, "num_hidden_layers", _first_layers(config)), suppress(Exception):
            if decoding_error(backbone) <= tolerance:
                _accepted.add(backbone)
                return
        _check_all_layers(backbone, tolerance)
    _accepted.add(backbone)


def _check_all_layers(backbone: PreTrainedModel, tolerance: float) -> None:
    name = type(backbone).__name__
    try:
        difference = decoding_error(backbone)
    except (UsageError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever an unknown architecture raises at arguments that it does not expect
        raise UsageError(
            f"{name} cannot be decoded in steps of one token ({type(error).__name__}: {one_line(error)}); give a model "
            "with a key-value cache, explicit positions and prepared masks"
        ) from error
    if not difference <= tolerance:
        raise UsageError(
            f"{name} decodes other hidden states in steps than in one pass (relative error {difference:.2g}): it "
            "ignores positions, masks or a window that its config names; it is not supported"
        )


def shortcuts(
    backbone: PreTrainedModel, shapes: Sequence[tuple[int, int]], max_length: int, *, many: bool, compiled: bool
) -> Shortcuts:
    """The shortcuts with which steps take least time; each is tried first, as decoding itself is.

    A model may change keys before it uses them, or its layers' results.

    Args:
        backbone: The model.
        shapes: Of a `FirstPass`.
        max_length: Maximum number of tokens in a slot.
        many: Whether there are so many slots that a CPU should read each slot's own part of the cache.
        compiled: Whether layers are compiled otherwise. Within these one kernel for attention has not been shown to be
            faster (experiments/results/decode.md).
    """
    fused = fused_attention(backbone, max_length)
    if not fused:
        in_chunks = many and not compiled and backbone.device.type == "cpu" and stored_in_chunks(backbone, shapes)
        return _with_chunks(backbone) if in_chunks else NO_SHORTCUTS
    lean = _lean_model(backbone) if _lean.get(backbone, True) else None
    if lean and backbone not in _lean:
        _lean[backbone] = _lean_works(backbone, lean, fused)
    if lean and _lean[backbone]:
        return Shortcuts(lean=lean, fused=fused)
    if compiled:
        return NO_SHORTCUTS
    if backbone not in _fused:
        _fused[backbone] = _fused_works(backbone, fused)
    return Shortcuts(fused=fused) if _fused[backbone] else NO_SHORTCUTS


def _lean_model(backbone: PreTrainedModel) -> LeanModel | None:
    with suppress(AttributeError):  # of parts with the usual names that have other attributes
        return lean_model(backbone)
    return None


def _with_chunks(backbone: PreTrainedModel) -> Shortcuts:
    """A cache in chunks, if the model can be run with it, and a lean model, if that computes the same."""
    lean = _lean_model(backbone)
    for candidate in (lean, None) if lean else (None,):
        found = Shortcuts(in_chunks=True, lean=candidate)
        with suppress(Exception):  # whatever a model raises that expects its keys by token
            if decoding_error(backbone, found) <= TOLERANCE:
                return found
    return NO_SHORTCUTS


def _lean_works(backbone: PreTrainedModel, lean: LeanModel, fused: Sequence[FusedAttention]) -> bool:
    """Whether a model decodes by this lean model with this attention."""
    try:
        return lean.agrees() and decoding_error(backbone, Shortcuts(lean=lean, fused=fused)) <= _tolerance(backbone)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever layers raise that are not called as they expect, or a compiler of kernels
        return False


def _fused_works(backbone: PreTrainedModel, fused: Sequence[FusedAttention]) -> bool:
    """Whether a model decodes with this attention; says so if the kernel fails."""
    try:
        return decoding_error(backbone, Shortcuts(fused=fused)) <= _tolerance(backbone)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler of kernels raises
        problem = f"{type(error).__name__}: {one_line(error)}"
        message = f"the kernel for rotary embedding and attention does not work here ({problem}); decoding is slower"
        warnings.warn(message, RunWarning, stacklevel=4)
        return False


def _tolerance(backbone: PreTrainedModel) -> float:
    return TOLERANCE if backbone.dtype == torch.float32 else HALF_TOLERANCE


@torch.no_grad()
def decoding_error(backbone: PreTrainedModel, shortcuts: Shortcuts = NO_SHORTCUTS) -> float:
    """Relative error of the decoded hidden states of the worse of two rows.

    One pass gives both what the steps begin from and what they are compared with, because a pass over few tokens costs
    what reading the weights costs. What follows the shorter row there must not matter, like padding.
    """
    # The longer row is to reach its second chunk, or its second block of keys.
    before = CHUNK if shortcuts.in_chunks else FUSED_BLOCK if shortcuts.fused else 0
    width = min(before + WIDTH, context_length(backbone))
    vocab_size = backbone.get_input_embeddings().weight.shape[0]
    # From the middle of the vocabulary, because special tokens often stand at its ends.
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size // 4, vocab_size // 2 + 1, (2, width), generator=generator).to(backbone.device)
    supported_layer_types(backbone)  # refuses by the layers' type what could fail in the pass
    whole, lengths = first_pass(backbone, tokens), [width, width // 2]
    step = ModelStep(backbone, len(tokens), width, compiled=False, seen=whole, shortcuts=shortcuts)
    found = _decoded(step, tokens, stacked(whole.cache), lengths)
    return max(_relative_error(found[row], whole.hidden_states[row, :length]) for row, length in enumerate(lengths))


def _decoded(step: ModelStep, tokens: torch.Tensor, states: list[torch.Tensor], lengths: list[int]) -> torch.Tensor:
    """h_t at the last tokens of rows, (R, STEPS, H), each from a step.

    Args:
        step: The model on R slots.
        tokens: Rows, (R, T).
        states: Keys and values of the rows, as ``stacked`` orders them.
        lengths: Number of tokens of each row.
    """
    index, ends = torch.arange(len(tokens), device=tokens.device), torch.tensor(lengths, device=tokens.device)
    for stack in states:
        for row, length in enumerate(lengths):
            stack[:, row, :, length - STEPS :] = 0  # the steps have to write these
    step.allocate(len(tokens)).write(index, states, index, tokens.shape[1])
    hidden = []
    for number in range(-STEPS, 0):
        step.positions[:] = ends + number
        step.tokens[:] = tokens[index, ends + number]
        step.step(len(tokens), max(lengths) + number)
        hidden.append(step.hidden.clone())
    return torch.stack(hidden, 1)


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean error of the last hidden states, (N, H), relative to how those of the whole row, (T, H), differ."""
    last = expected[-len(found) :].float()
    # Trained models have numbers in h_t that are large and the same everywhere; they would hide a difference.
    spread = last - expected.float().mean(0)
    return float(((found.float() - last).norm(dim=-1) / spread.norm(dim=-1)).mean())


def _first_layers(config: PreTrainedConfig) -> int:
    """Number of layers at the beginning that contain every type of layer, and at least one layer after another."""
    types = list(getattr(config, "layer_types", None) or ())
    return max([2, *(types.index(kind) + 1 for kind in set(types))])


@contextmanager
def _changed(config: PreTrainedConfig, name: str, highest: int) -> Iterator[None]:
    """Within this context a number of the config is at most ``highest``."""
    before = getattr(config, name, None)
    if before is None or before <= highest:
        yield
        return
    setattr(config, name, highest)
    try:
        yield
    finally:
        setattr(config, name, before)
