"""Option plug-ins on the Hugging Face hub: upload with a generated model card, download by id."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import HTTPError

from ollm_rl.backbones.names import (
    OPTION_FILE,
    OWN_BACKBONES,
    WEIGHTS_FILE,
    config_file,
    download_adapter,
    has_owner,
    is_hub_id,
)
from ollm_rl.errors import MissingError, UsageError, one_line
from ollm_rl.runs import METRICS_FILE, write_atomic
from ollm_rl.settings import checked

RUN_FILE, CARD_FILE = "run.json", "README.md"


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a plug-in and its model card, and a run's metrics and origin if there are any; no other files.

    A folder without a README.md gets the generated card. ``run.json`` names the machine and the command.

    Args:
        folder: Written by ``OptionModel.save_pretrained`` or ``ollm-rl sft``.
        repo_id: ``user/name``; the repository is created if it is missing.
        private: Whether a repository created here is private.
        token: Access token of the hub; None is the one stored by ``hf auth login``.

    Returns:
        The repository's URL.

    Raises:
        MissingError: If the folder holds no plug-in.
        UsageError: If a file cannot be read, there is no token, the hub refuses, or it is unreachable.
    """
    folder = Path(folder)
    _require_config(folder, str(folder))
    if not (folder / WEIGHTS_FILE).exists():
        raise MissingError(f"{folder} holds no option plug-in (no {WEIGHTS_FILE}); train one with ollm-rl sft")
    uploaded = [config_file(folder).name, WEIGHTS_FILE, METRICS_FILE, RUN_FILE]
    return upload(folder, repo_id, uploaded, _card_of(folder, repo_id), private=private, token=token)


def upload(folder: Path, repo_id: str, files: list[str], card: str, *, private: bool, token: str | None) -> str:
    """Upload files of a folder and a card, which is written into it if it has none; returns the repository's URL.

    Raises:
        UsageError: As `push_to_hub`.
    """
    if not has_owner(repo_id):
        raise UsageError(f"repo_id={repo_id!r} is not a name on the hub; give user/name")
    if not (token or get_token()):
        raise UsageError(f"there is no token to push {repo_id} with; run hf auth login, or give token")
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if not (folder / CARD_FILE).exists():  # after create_repo, which rejects a mistyped repo_id
            write_atomic(folder / CARD_FILE, card)
        patterns = [*files, CARD_FILE]
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, allow_patterns=patterns, commit_message="Upload with ollm-rl"
        )
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: hf_xet, which uploads large files
        raise UsageError(
            f"{repo_id} cannot be pushed ({one_line(error)}); check the name, network and hf auth login"
        ) from error
    return str(url)


def local_folder(name: str | Path) -> Path:
    """The folder of a plug-in: a local folder, else a hub repository's two files, downloaded or cached.

    Raises:
        MissingError: If neither holds a plug-in, or there is no network (found without long retries).
    """
    folder: Path = checked("model", name, Path)
    if not folder.exists() and has_owner(str(name)):
        folder = download_adapter(str(name))
    _require_config(folder, str(name))
    return folder


def model_card(
    description: dict[str, Any],
    metrics: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    *,
    repo_id: str,
    policy: str | None = None,
) -> str:
    """The README.md of a plug-in or policy, with the hub's metadata at the top. All numbers come from the arguments.

    Args:
        description: Contents of ``option_config.json`` as ``OptionModel.save_pretrained`` writes it; for a policy its
            settings, and the same two entries of its backbone.
        metrics: A line of a run's ``metrics.json``.
        run: The run's ``run.json``.
        repo_id: Repository of the card.
        policy: What a policy chooses among; None for a plug-in.
    """
    backbone, fingerprint = description["backbone"], description["backbone_fingerprint"]
    on_hub = backbone not in OWN_BACKBONES and not Path(backbone).exists() and is_hub_id(backbone)
    data = ModelCardData(
        library_name="ollm-rl",
        base_model=backbone if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        tags=["ollm-rl", "options", "latent-actions", "reinforcement-learning"],
    )
    card = ModelCard.from_template(
        data,
        template_str=(files("ollm_rl") / "options" / "model_card.md").read_text(encoding="utf-8"),
        repo_id=repo_id,
        num_options=description.get("num_options"),
        policy=policy,
        backbone=backbone,
        fingerprint=fingerprint,
        backbone_is_public=on_hub or backbone in OWN_BACKBONES,
        settings={name: value for name, value in description.items() if not name.startswith("backbone")},
        metrics=metrics,
        run=run,
    )
    return str(card)


def _card_of(folder: Path, repo_id: str) -> str:
    """The card of the plug-in in a folder, from its files."""
    try:
        description = json.loads(config_file(folder).read_text())
        metrics, run = folder / METRICS_FILE, folder / RUN_FILE
        lines = [line for line in json.loads(metrics.read_text()) if "loss" in line] if metrics.exists() else []
        origin = json.loads(run.read_text()) if run.exists() else None
        return model_card(description, lines[-1] if lines else None, origin, repo_id=repo_id)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder} cannot be described ({type(error).__name__}: {error}); copy its {config_file(folder).name}, "
            f"{METRICS_FILE} and {RUN_FILE} again"
        ) from error


def _require_config(folder: Path, name: str) -> None:
    if not config_file(folder).exists():
        raise MissingError(f"{name} holds no option plug-in (no {OPTION_FILE}); train one with ollm-rl sft")
