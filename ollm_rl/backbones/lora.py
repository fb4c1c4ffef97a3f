"""LoRA (Hu et al. 2022) with peft: the baseline for options in supervised and in reinforcement learning."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from peft import LoraConfig, PeftModel, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ollm_rl.backbones.loading import check_files
from ollm_rl.backbones.names import CONFIG_FILE, ModelName, resolve
from ollm_rl.errors import DamagedError, UsageError, one_line


def lora_config(backbone: PreTrainedModel, rank: int) -> LoraConfig:
    """Config of a LoRA on all linear layers and experts of the text decoder, without the output head.

    Layers that read no text, as those of a vision tower, would never get a gradient.
    """
    decoder = backbone.get_decoder()
    text_modules = {*decoder.modules(), backbone.get_output_embeddings()}
    outside = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module not in text_modules
    ]
    # The experts of a layer are not linear layers but one tensor each for their first and second products.
    experts = {".".join(name.split(".")[-2:]) for name, weight in decoder.named_parameters() if weight.ndim == 3}
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        exclude_modules=outside or None,
        target_parameters=sorted(experts) or None,
    )


def add_lora(backbone: PreTrainedModel, rank: int) -> None:
    """Add an untrained LoRA in place; only its weights have gradients."""
    inject_adapter_in_model(lora_config(backbone, rank), backbone)


@contextmanager
def without_lora(backbone: PreTrainedModel) -> Iterator[None]:
    """Within this context the backbone is as it was before ``add_lora``."""
    layers = [module for module in backbone.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def load_lora(backbone: PreTrainedModel, name: str | ModelName) -> PeftModel:
    """Add a LoRA saved by peft's ``save_pretrained`` to a backbone; ``disable_adapter`` switches it off.

    Raises:
        MissingError: If the name is not that of a LoRA.
        UsageError: If the LoRA was trained on another backbone, or is damaged.
    """
    lora = (name if isinstance(name, ModelName) else resolve(name)).require("lora", role="lora")
    assert lora.folder is not None
    backbone_name = backbone.config.name_or_path
    trained_on = lora.trained_on
    if trained_on and Path(trained_on).resolve() != Path(backbone_name).resolve():
        raise UsageError(
            f"lora={lora.name!r} was trained on {trained_on!r}, the options on {backbone_name!r}; give a LoRA of that "
            "backbone (or, if both names mean the same one, correct base_model_name_or_path in "
            f"{lora.folder / CONFIG_FILE})"
        )
    if lora.description.get("megatron_config"):  # peft would import the module that the file names
        raise UsageError(f"lora={lora.name!r} needs megatron, which is not supported; give a plain LoRA")
    try:
        check_files(lora.folder)
        return PeftModel.from_pretrained(backbone, lora.folder).eval()
    except DamagedError:
        raise
    except (ValueError, RuntimeError, OSError, TypeError, KeyError, SafetensorError, UnpicklingError) as error:
        raise UsageError(
            f"lora={lora.name!r} does not fit the backbone {backbone_name!r} ({one_line(error)}); give a LoRA that was "
            "trained on it"
        ) from error
