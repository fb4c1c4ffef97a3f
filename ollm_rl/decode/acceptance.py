"""Accepts a model for decoding: steps in two rows of different length must agree with passes over the whole rows.

Architectures differ in what they do with explicit positions, masks, windows and caches. One that ignores any of these
would decode nonsense without an error.

Letters: R rows, N compared positions of a row, T tokens, H hidden.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from weakref import WeakSet

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ollm_rl.backbones.loading import context_length
from ollm_rl.backbones.output_head import last_hidden_states
from ollm_rl.decode.prefill import encode
from ollm_rl.decode.step import ModelStep
from ollm_rl.errors import UsageError, one_line

WIDTH, STEPS = 24, 2  # tokens of the longer row, and how many of them are decoded; the shorter row is half as long
WINDOW = 8  # tokens; a longer window is cut to this for the comparison, so that few tokens go beyond it
# Highest relative error. Rounding in float32 makes 1e-5, in bfloat16 up to 0.1, more where an expert is chosen
# differently; a wrong position or mask makes 0.3 and more of a trained model's hidden states.
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.25

_accepted: WeakSet[PreTrainedModel] = WeakSet()


def check_decoding(backbone: PreTrainedModel) -> None:
    """Compare decoding steps with full passes; a model object is compared only once.

    The first layers are compared, as many as it takes to see every type of layer. Only if they differ or fail, all
    layers decide, because some models cannot run without the others.

    Raises:
        UsageError: If they differ, or the model cannot be run in steps; the message names its class.
    """
    if backbone in _accepted:
        return
    tolerance = TOLERANCE if backbone.dtype == torch.float32 else HALF_TOLERANCE
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


@torch.no_grad()
def decoding_error(backbone: PreTrainedModel) -> float:
    """Relative error of the decoded hidden states of the worse of two rows."""
    width = min(WIDTH, context_length(backbone))
    vocab_size = backbone.get_input_embeddings().weight.shape[0]
    # From the middle of the vocabulary, because special tokens often stand at its ends.
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size // 4, vocab_size // 2 + 1, (2, width), generator=generator)
    rows = [tokens[0].to(backbone.device), tokens[1, : width // 2].to(backbone.device)]
    found = _decoded(backbone, rows)
    return max(
        _relative_error(states, last_hidden_states(backbone, row[None])[0])
        for row, states in zip(rows, found, strict=True)
    )


def _decoded(backbone: PreTrainedModel, rows: list[torch.Tensor]) -> torch.Tensor:
    """h_t at the last tokens of rows, (R, STEPS + 1, H), the first from their prompts and the others from steps."""
    step = ModelStep(backbone, len(rows), len(rows[0]), compiled=False)
    prompts = [tuple(row[:-STEPS].tolist()) for row in rows]
    (snapshot, *_) = (snapshot for _, snapshot, _ in encode(step.read, prompts, backbone.device))
    index, longest = torch.arange(len(rows), device=backbone.device), max(snapshot.lengths)
    step.allocate(len(rows)).write(index, snapshot.states, index, 0, longest)
    step.positions[:] = torch.tensor(snapshot.lengths)
    step.note_prompts(snapshot.prompts)
    states = [snapshot.hidden]
    for number in range(STEPS):
        step.tokens[:] = torch.stack([row[number - STEPS] for row in rows])
        step.step(len(rows), longest + number)
        step.positions += 1
        states.append(step.hidden.clone())
    return torch.stack(states, 1)


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
