"""Trained policies to share: the result of a training run with its options, in one folder or hub repository.

`load_policy`, and every command that takes a training run, read them by folder or hub id.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.loading import refuse_sb3
from ollm_rl.backbones.loading import fingerprint, load_backbone
from ollm_rl.backbones.names import (
    COPY,
    POLICY_FILE,
    POLICY_OPTIONS,
    POLICY_WEIGHTS,
    WEIGHTS_FILE,
    ModelName,
    config_file,
    resolve,
)
from ollm_rl.errors import MissingError, UsageError
from ollm_rl.files.records import read_object, sealed_json
from ollm_rl.files.tensors import load_tensors, sealed_weights
from ollm_rl.options.hub import model_card, upload
from ollm_rl.runs import read_record, write_atomic

ORIGIN = {"commit": str, "versions": {}, "machine": str, "command": str}
# Of the last iteration's metrics.
KEPT = ("episodes", "reward", "completion_tokens", "entropy", "eval_accuracy", "eval_low", "eval_high")
SAVED: dict[str, Any] = {
    "config": {"action_space": str},
    "backbone": str,
    "backbone_fingerprint": str,
    "metrics": {},
    "origin": ORIGIN,
}


def save_policy(run: str | Path, folder: str | Path) -> Path:
    """Write a trained policy and the options it chooses among into one folder, without the backbone.

    Args:
        run: A training run, whose last checkpoint is taken, or a checkpoint such as ``runs/anchored/best.pt``.
        folder: Where to: a new folder, or one that an earlier call wrote.

    Returns:
        The folder: ``policy.safetensors``, ``policy_config.json`` and, over options, the plug-in in ``options``.

    Raises:
        MissingError: If the name is no training run, the run has saved no checkpoint yet, or its model is missing.
        UsageError: If the run is that of an SB3 agent, or is a saved policy already, or the folder holds other files.
    """
    model, folder = resolve(run).require("run", role="run"), Path(folder)
    _refuse_others(folder)
    refuse_sb3(model)
    if model.backbone_fingerprint is not None:
        raise UsageError(f"run={str(run)!r} is a saved policy already; copy its folder, or push it")
    if model.checkpoint is None:
        raise MissingError(f"{run} has saved no checkpoint yet; let ollm-rl train finish an iteration")
    state = load_tensors(model.checkpoint, "policy", "history")
    record = read_record(model.described_in)
    backbone = _copy_options(model, folder) if model.has_options else _backbone_below(model)
    write_atomic(folder / POLICY_WEIGHTS, sealed_weights({n: w.contiguous() for n, w in state["policy"].items()}))
    saved = {
        "config": record["config"] | {"model": POLICY_OPTIONS if model.has_options else backbone["backbone"]},
        **backbone,
        "metrics": {name: state["history"][-1][name] for name in KEPT if name in state["history"][-1]},
        "origin": {name: record[name] for name in ORIGIN},
    }
    write_atomic(folder / POLICY_FILE, sealed_json(saved))  # last, since its presence says that the rest is there
    return folder


def push_to_hub(run: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a trained policy with its options and a generated model card.

    Args:
        run: As for `save_policy`, or a folder that it wrote; a README.md there is uploaded in place of the card.
        repo_id: ``user/name``; the repository is created if it is missing.
        private: Whether a repository created here is private.
        token: Access token of the hub; None is the one stored by ``hf auth login``.

    Returns:
        The repository's URL.

    Raises:
        MissingError: As `save_policy`.
        UsageError: As `save_policy`; or if there is no token, the hub refuses, or it is unreachable.
    """
    with tempfile.TemporaryDirectory() as temporary:
        is_saved = (Path(run) / POLICY_FILE).exists()
        folder = Path(run) if is_saved else save_policy(run, Path(temporary))
        files = [POLICY_FILE, POLICY_WEIGHTS, f"{POLICY_OPTIONS}/*.json", f"{POLICY_OPTIONS}/{WEIGHTS_FILE}"]
        return upload(folder, repo_id, files, _card(folder, repo_id), private=private, token=token)


def _refuse_others(folder: Path) -> None:
    """Refuse a folder with more than a saved policy, such as a run's: it would be taken for a policy from then on."""
    ours = {POLICY_WEIGHTS, POLICY_FILE, POLICY_OPTIONS, "README.md"}
    names = {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.exists() else set()
    if others := sorted(names - ours):
        raise UsageError(f"folder={str(folder)!r} holds other files, such as {others[0]}; give a new folder")


def _copy_options(model: ModelName, folder: Path) -> dict[str, str]:
    """Copy the plug-in that a policy chooses among; returns what it says of its backbone."""
    below = model.below
    assert below is not None
    source = below.require("options", role="model").folder
    assert source is not None
    for path in (source / WEIGHTS_FILE, config_file(source)):
        write_atomic(folder / POLICY_OPTIONS / path.name, path.read_bytes())
    return {name: below.description[name] for name in ("backbone", "backbone_fingerprint")}


def _backbone_below(model: ModelName) -> dict[str, str]:
    """Name and fingerprint of the backbone of a policy over tokens."""
    backbone, _ = load_backbone(model.backbone)
    return {"backbone": model.backbone, "backbone_fingerprint": fingerprint(backbone)}


def _card(folder: Path, repo_id: str) -> str:
    saved = read_object(folder / POLICY_FILE, SAVED, remedy=COPY)
    defaults = dataclasses.asdict(RLConfig(out=Path(), model=""))
    settings = {
        name: value
        for name, value in saved["config"].items()
        if name not in ("out", "model") and value is not None and value != defaults.get(name)
    }
    described = {name: saved[name] for name in ("backbone", "backbone_fingerprint")} | settings
    over = "the vocabulary"
    if saved["config"]["action_space"] == "options":
        over = f"the learned options in the folder `{POLICY_OPTIONS}`"
    return model_card(described, saved["metrics"], saved["origin"], repo_id=repo_id, policy=over)
