"""LoRA (Hu et al. 2022) with peft: what options are compared with, in supervised and in reinforcement learning."""

from pathlib import Path

from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ollm_rl.backbones.names import CONFIG_FILE, ModelName, resolve
from ollm_rl.errors import UsageError, one_line


def lora_config(rank: int) -> LoraConfig:
    """A LoRA on all linear layers but the output head."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")


def load_lora(backbone: PreTrainedModel, name: str | ModelName) -> PeftModel:
    """Put a LoRA that peft's ``save_pretrained`` wrote into a backbone, where ``disable_adapter`` switches it off.

    Raises:
        MissingError: If the name holds no LoRA.
        UsageError: If the LoRA was trained on another backbone, or is damaged.
    """
    found = (name if isinstance(name, ModelName) else resolve(name)).require("lora", role="lora")
    assert found.folder is not None
    here, trained_on = backbone.config.name_or_path, found.description.get("base_model_name_or_path")
    if trained_on and Path(trained_on).resolve() != Path(here).resolve():
        raise UsageError(
            f"lora={found.name!r} was trained on {trained_on!r}, the options on {here!r}; give a LoRA of that backbone "
            f"(or, if the two are one, correct base_model_name_or_path in {found.folder / CONFIG_FILE})"
        )
    try:
        return PeftModel.from_pretrained(backbone, found.folder).eval()
    except (ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise UsageError(
            f"lora={found.name!r} does not fit the backbone {here!r} ({one_line(error)}); give a LoRA that was trained "
            "on it"
        ) from error
