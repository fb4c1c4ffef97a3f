"""LoRA (Hu et al. 2022) with peft: the baseline for options in supervised and in reinforcement learning."""

from pathlib import Path
from pickle import UnpicklingError

from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ollm_rl.backbones.loading import check_files
from ollm_rl.backbones.names import CONFIG_FILE, ModelName, resolve
from ollm_rl.errors import DamagedError, UsageError, one_line


def lora_config(rank: int) -> LoraConfig:
    """Config of a LoRA on all linear layers except the output head."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")


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
