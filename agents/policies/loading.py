"""Policies from folders and names: a training run, an option SFT run, or a backbone."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.agents.training.checkpoints import LAST_FOLDER, last_checkpoint
from ollm_rl.backbones.loading import load_backbone, load_tokenizer
from ollm_rl.backbones.lora import load_lora, lora_backbone
from ollm_rl.errors import MissingError, UsageError
from ollm_rl.options.hub import CONFIG_FILE
from ollm_rl.options.model import OptionModel
from ollm_rl.runs import read_run


def new_policy(config: RLConfig, device: torch.device) -> tuple[Policy, PreTrainedTokenizerBase]:
    """The untrained policy of a run and its backbone's tokenizer.

    Raises:
        MissingError: If options are asked for and ``config.model`` holds no option plug-in.
    """
    dtype = getattr(torch, config.dtype)
    if config.action_space == "options":
        model = OptionModel.from_pretrained(config.model, dtype=dtype, device=device)
        policy = OptionPolicy(model, plain=config.option_gradient == "option")
        return policy, load_tokenizer(model.backbone.config.name_or_path)
    backbone, tokenizer = load_backbone(backbone_name(config.model), dtype=dtype, device=device)
    return TokenPolicy(backbone, rank=config.lora_rank), tokenizer


def load_policy(
    name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Policy, PreTrainedTokenizerBase]:
    """The policy behind a training run (as last saved), one of its checkpoints, an SFT run, a LoRA, or a backbone.

    Raises:
        MissingError: If the training run has saved no checkpoint yet.
        UsageError: If the name is none of these, or the training run is one of SB3's agents.
    """
    if (base := lora_backbone(name)) is not None:
        backbone, tokenizer = load_backbone(base, dtype=dtype, device=device)
        return TokenPolicy(load_lora(backbone, name).merge_and_unload(), rank=0), tokenizer
    if (Path(name) / CONFIG_FILE).exists():
        model = OptionModel.from_pretrained(name, dtype=dtype, device=device)
        return OptionPolicy(model), load_tokenizer(model.backbone.config.name_or_path)
    if (run := training_run(Path(name))) is not None:
        settings = read_run(run, "train")
        if (agent := settings.get("agent", "ollm-rl")) != "ollm-rl":
            raise UsageError(
                f"{name} holds an agent of stable-baselines3 ({agent}), which is evaluated there: "
                f"PPO.load('{run / 'model.zip'}') and so on"
            )
        config = RLConfig(**{**settings, "out": run, "dtype": str(dtype).removeprefix("torch.")})
        policy, tokenizer = new_policy(config, torch.device(device))
        checkpoint = Path(name) if Path(name).is_file() else last_checkpoint(run)
        if checkpoint is None:
            raise MissingError(f"{name} has saved no checkpoint yet; let ollm-rl train finish an iteration")
        load_weights(policy, torch.load(checkpoint, map_location=device, weights_only=True)["policy"])
        return policy, tokenizer
    backbone, tokenizer = load_backbone(name, dtype=dtype, device=device)
    return TokenPolicy(backbone, rank=0), tokenizer


def training_run(path: Path) -> Path | None:
    """The folder of a training run, of which the path names itself or a checkpoint."""
    if path.is_file() and path.suffix == ".pt":
        path = path.parent.parent if path.parent.name == LAST_FOLDER else path.parent
    of_sft = any((path / name).exists() for name in ("config.json", CONFIG_FILE))
    return path if (path / "run.json").exists() and not of_sft else None


def trained_weights(policy: Policy) -> dict[str, torch.Tensor]:
    """What training moves: policy and value head, or LoRA and value head."""
    return {name: weight.detach() for name, weight in policy.named_parameters() if weight.requires_grad}


@torch.no_grad()
def load_weights(policy: Policy, weights: dict[str, torch.Tensor]) -> None:
    """Put saved weights back in place.

    Raises:
        UsageError: If they belong to another policy.
    """
    present = trained_weights(policy)
    if {name: weight.shape for name, weight in present.items()} != {n: weight.shape for n, weight in weights.items()}:
        raise UsageError("the checkpoint holds the weights of another policy; give the model it was trained on")
    for name, weight in present.items():
        weight.copy_(weights[name])


def backbone_name(model: str) -> str:
    """The backbone's name, where ``model`` is the folder of an option SFT run; else ``model`` itself."""
    if lora_backbone(model) is not None:
        raise UsageError(f"model={model!r} is a LoRA, and training over tokens starts one of its own; give a backbone")
    if not (Path(model) / CONFIG_FILE).exists():
        return model
    return str(json.loads((Path(model) / CONFIG_FILE).read_text())["backbone"])
