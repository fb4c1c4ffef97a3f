"""Load policies by name: of a training run, an option plug-in, a LoRA or a backbone."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.anchored import AnchoredPolicy, TopTokensPolicy
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.frozen_head import FrozenHeadPolicy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.backbones.loading import fingerprint, load_backbone, load_tokenizer, not_finite
from ollm_rl.backbones.lora import load_lora
from ollm_rl.backbones.names import POLICY_WEIGHTS, ModelName, resolve
from ollm_rl.errors import MissingError, UsageError, one_line
from ollm_rl.files.tensors import load_sealed_weights, load_tensors
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.prompts import format_prompts

TOP_TOKENS = 10  # as many as options by default


def new_policy(
    config: RLConfig, device: torch.device, *, backbone_fingerprint: str | None = None
) -> tuple[Policy, PreTrainedTokenizerBase]:
    """Create the untrained policy of a run; returns it and its backbone's tokenizer.

    Args:
        config: Settings of the run.
        device: Device of the policy.
        backbone_fingerprint: Of the only backbone that is accepted; None accepts any. A plug-in has its own.

    Raises:
        MissingError: If ``config.model`` holds no option plug-in (over options), or is a LoRA or a training run (over
            tokens).
        UsageError: If the backbone is another one.
    """
    policy, tokenizer = _new_policy(config, getattr(torch, config.dtype), device, backbone_fingerprint)
    policy.temperature = config.temperature
    format_prompts(tokenizer, config)
    return policy, tokenizer


def _new_policy(
    config: RLConfig, dtype: torch.dtype, device: torch.device, backbone_fingerprint: str | None
) -> tuple[Policy, PreTrainedTokenizerBase]:
    model = resolve(config.model)
    if config.action_space == "options":
        options, tokenizer = _load_options(model.require("options", role="model"), dtype, device)
        if config.policy == "latent":
            return OptionPolicy(options, plain=config.option_gradient == "option"), tokenizer
        return AnchoredPolicy(options), tokenizer
    model.require("backbone", "options", role="model")  # training over tokens starts its own LoRA
    backbone, tokenizer = load_backbone(model.backbone, dtype=dtype, device=device)
    if backbone_fingerprint is not None and (actual := fingerprint(backbone)) != backbone_fingerprint:
        raise UsageError(
            f"the policy was trained on backbone {model.backbone!r} with fingerprint {backbone_fingerprint}, but this "
            f"one has {actual}; put the backbone it was trained on there"
        )
    if config.policy == "frozen-head":
        return FrozenHeadPolicy(backbone), tokenizer
    if config.policy == "top-tokens":
        return TopTokensPolicy(backbone, TOP_TOKENS), tokenizer
    return TokenPolicy(backbone, rank=config.lora_rank), tokenizer


def load_policy(
    name: str | ModelName, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Policy, PreTrainedTokenizerBase]:
    """Load the policy of a training run (as last saved), a checkpoint, an option plug-in, a LoRA or a backbone.

    Each by folder or hub id; what `ollm_rl.agents.policies.hub` saved or uploaded is a training run's policy too. Its
    temperature is 1, whatever that of its training was.

    Raises:
        MissingError: If the training run has saved no checkpoint yet.
        UsageError: If the name is none of these, or the training run is that of an SB3 agent.
    """
    model = name if isinstance(name, ModelName) else resolve(name)
    if model.kind == "options":
        options, tokenizer = _load_options(model, dtype, device)
        return OptionPolicy(options), tokenizer
    if model.kind == "run":
        return _trained_policy(model, dtype, device)
    backbone, tokenizer = load_backbone(model.backbone, dtype=dtype, device=device)
    if model.kind == "lora":
        backbone = load_lora(backbone, model).merge_and_unload()
    return TokenPolicy(backbone, rank=0), tokenizer


def trained_weights(policy: Policy) -> dict[str, torch.Tensor]:
    """The weights that training changes: policy and value head, or LoRA and value head."""
    return {name: weight.detach() for name, weight in policy.named_parameters() if weight.requires_grad}


@torch.no_grad()
def load_weights(policy: Policy, weights: dict[str, torch.Tensor]) -> None:
    """Copy saved weights into a policy.

    Raises:
        UsageError: If the weights belong to another policy, or are not finite.
    """
    if (broken := not_finite(weights)) is not None:
        raise UsageError(f"{broken} in the checkpoint is not finite; give an earlier checkpoint, such as best.pt")
    current = trained_weights(policy)
    if {name: weight.shape for name, weight in current.items()} != {n: weight.shape for n, weight in weights.items()}:
        raise UsageError("the checkpoint holds the weights of another policy; give the model it was trained on")
    for name, weight in current.items():
        weight.copy_(weights[name])


def _load_options(
    model: ModelName, dtype: torch.dtype, device: torch.device | str
) -> tuple[OptionModel, PreTrainedTokenizerBase]:
    assert model.folder is not None
    options = OptionModel.from_pretrained(model.folder, dtype=dtype, device=device)
    return options, load_tokenizer(options.backbone.config.name_or_path)


def _trained_policy(
    model: ModelName, dtype: torch.dtype, device: torch.device | str
) -> tuple[Policy, PreTrainedTokenizerBase]:
    refuse_sb3(model)
    settings, run = model.description, model.folder
    changes = {"out": run, "model": model.trained_on, "dtype": str(dtype).removeprefix("torch.")}
    if settings.get("policy") is None and model.has_options:  # older runs do not say so
        changes["policy"] = "latent"
    try:
        config = RLConfig(**settings | changes)
    except TypeError as error:
        reason = one_line(error)
        raise UsageError(f"{model.described_in} does not fit ({reason}); copy it again, or train again") from error
    try:
        policy, tokenizer = new_policy(config, torch.device(device), backbone_fingerprint=model.backbone_fingerprint)
    except MissingError as error:
        raise MissingError(f"{error}; {model.name} was trained on that model") from error
    if model.checkpoint is None:
        raise MissingError(f"{model.name} has saved no checkpoint yet; let ollm-rl train finish an iteration")
    load_weights(policy, _saved_weights(model.checkpoint, device))
    policy.temperature = 1.0
    return policy, tokenizer


def refuse_sb3(model: ModelName) -> None:
    """Refuse a training run of an agent of stable-baselines3, whose policy is not one of ours."""
    if (agent := model.description.get("agent", "ollm-rl")) != "ollm-rl":
        raise UsageError(
            f"{model.name} holds an agent of stable-baselines3 ({agent}); evaluate it there: "
            f"PPO.load('{model.folder}/model.zip') and so on"
        )


def _saved_weights(path: Path, device: torch.device | str) -> dict[str, torch.Tensor]:
    """The trained weights in a checkpoint, or in the file of a shared policy."""
    if path.name != POLICY_WEIGHTS:
        weights: dict[str, torch.Tensor] = load_tensors(path, "policy", device=device)["policy"]
        return weights
    return load_sealed_weights(path, device=device)
