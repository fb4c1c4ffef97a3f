"""LoRA (Hu et al. 2022) with peft: what options are compared with, in supervised and in reinforcement learning."""

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ollm_rl.errors import MissingError, UsageError, one_line
from ollm_rl.options.hub import CONFIG_FILE


def lora_config(rank: int) -> LoraConfig:
    """A LoRA on all linear layers but the output head."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")


def lora_backbone(folder: str) -> str | None:
    """Name of the backbone on which the LoRA in a folder was trained; None if the folder holds no LoRA."""
    description = _description(folder)
    return str(description["base_model_name_or_path"]) if description.get("peft_type") == "LORA" else None


def load_lora(backbone: PreTrainedModel, folder: str) -> PeftModel:
    """Put the LoRA that peft's ``save_pretrained`` wrote into a backbone, where ``disable_adapter`` switches it off.

    Raises:
        MissingError: If the folder holds no LoRA.
        UsageError: If the LoRA was trained on another backbone.
    """
    description = _description(folder)
    if description.get("peft_type") != "LORA":  # an option plug-in has a file of this name, too
        raise MissingError(f"lora={folder!r} holds no LoRA; give a folder written by peft's save_pretrained")
    name, trained_on = backbone.config.name_or_path, description.get("base_model_name_or_path")
    if trained_on and Path(trained_on).resolve() != Path(name).resolve():
        raise UsageError(
            f"lora={folder!r} was trained on {trained_on!r}, the options on {name!r}; give a LoRA of that backbone "
            f"(or, if the two are one, correct base_model_name_or_path in {Path(folder) / CONFIG_FILE})"
        )
    try:
        return PeftModel.from_pretrained(backbone, folder).eval()
    except (ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise UsageError(
            f"lora={folder!r} does not fit the backbone {name!r} ({one_line(error)}); give a LoRA that was trained on it"
        ) from error


def _description(folder: str) -> dict[str, Any]:
    path = Path(folder) / CONFIG_FILE
    description: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return description
