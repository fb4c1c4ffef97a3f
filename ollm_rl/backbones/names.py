"""Resolves a model's name to a backbone, an option plug-in, a LoRA, a training run, one of its checkpoints or a policy.

All commands resolve names here. A name is a folder, a checkpoint file, an id on the Hugging Face hub, or one of
OWN_BACKBONES.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ollm_rl.errors import DamagedError, MissingError, UsageError, one_line
from ollm_rl.files.records import read_object
from ollm_rl.runs import CHECKPOINTS_FOLDER, last_checkpoint, places_in, read_record, such_as
from ollm_rl.safekeeping.places import Place, located
from ollm_rl.services.network import hub_answers
from ollm_rl.settings import checked

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"  # of a peft adapter
OPTION_FILE = "option_config.json"  # of a plug-in, with the same file of weights; older ones have CONFIG_FILE
# A trained policy that was saved to be shared: its settings and weights, and beside them the options it chooses among.
POLICY_FILE, POLICY_WEIGHTS, POLICY_OPTIONS = "policy_config.json", "policy.safetensors", "options"
OWN_BACKBONES = ("tiny-arith", "smollm2-135m")  # not on the hub
COPY = "copy or download it again"

Kind = Literal["backbone", "options", "lora", "run"]
WORDS: dict[Kind, str] = {
    "backbone": "a backbone",
    "options": "an option plug-in (ollm-rl sft trains one)",
    "lora": "a LoRA",
    "run": "a training run",
}
CONTENTS = WORDS | {"backbone": "neither plug-in, LoRA nor training run"}


@dataclass(frozen=True)
class ModelName:
    """A resolved name.

    Attributes:
        name: The name as the user gave it.
        kind: Kind of the model.
        folder: Folder of its files, for a hub repository in the hub's cache; None for a backbone.
        description: Contents of `config_file` for a plug-in or LoRA, settings for a training run.
        checkpoint: Checkpoint of a training run: the named one, else the last; None if none was saved. The weights of a
            shared policy, which is of kind ``run`` too.
        places: By setting, where what it was trained on lay when its run began.
        backbone_fingerprint: What a shared policy says of its backbone's weights; None for all else.
    """

    name: str
    kind: Kind
    folder: Path | None = None
    description: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    places: dict[str, Place] = field(default_factory=dict)
    backbone_fingerprint: str | None = None

    @property
    def described_in(self) -> Path:
        """The file with ``description``; not for a backbone."""
        assert self.folder is not None
        if self.kind != "run":
            return config_file(self.folder)
        return self.folder / ("run.json" if self.backbone_fingerprint is None else POLICY_FILE)

    @property
    def trained_on(self) -> str | None:
        """Name of the model that it was trained on, by its path of today; None for a backbone.

        Raises:
            MissingError: If that model is no longer where it was, nor at the same place relative to this one.
            DamagedError: If the name is missing.
        """
        entries = {
            "options": ("backbone", "backbone"),
            "lora": ("base_model_name_or_path", "backbone"),
            "run": ("model", "model"),
        }
        if self.kind not in entries:
            return None
        entry, setting = entries[self.kind]
        assert self.folder is not None
        name = self.description.get(entry)
        if not isinstance(name, str):
            raise DamagedError(f"{self.described_in} does not say what it was trained on ({entry}); copy it again")
        return located(name, setting, self.folder, self.places.get(setting))

    @property
    def below(self) -> "ModelName | None":
        """The model that it was trained on; None for a backbone. Raises as ``trained_on``."""
        name = self.trained_on
        return None if name is None else resolve(name)

    @property
    def backbone(self) -> str:
        """The name of the backbone underneath."""
        below = self.below
        return self.name if below is None else below.backbone

    @property
    def has_options(self) -> bool:
        """Whether its policy chooses among options."""
        return self.kind == "options" or (self.kind == "run" and self.description.get("action_space") == "options")

    @property
    def files(self) -> list[Path]:
        """The files with its weights; none for a backbone that is not a folder."""
        if self.kind == "run":
            return [self.checkpoint] if self.checkpoint else []
        return sorted((self.folder or Path(self.name)).glob("*.safetensors"))

    def require(self, *kinds: Kind, role: str) -> "ModelName":
        """Return this name if it is of an accepted kind.

        Args:
            kinds: The accepted kinds.
            role: The setting that holds the name, for the error message.

        Raises:
            MissingError: If it is of another kind.
        """
        if self.kind not in kinds:
            accepted = " or ".join(WORDS[kind] for kind in kinds)
            unknown = self.kind == "backbone" and has_owner(self.name) and not Path(self.name).exists()
            if unknown and not hub_answers():
                raise MissingError(f"{role}={self.name!r} is no folder, and the hub is out of reach; give {accepted}")
            raise MissingError(f"{role}={self.name!r} holds {CONTENTS[self.kind]}; give {accepted}")
        return self


def resolve(name: str | Path) -> ModelName:
    """Resolve a name without reading weights.

    Raises:
        MissingError: If a folder holds a run without a trained model.
        UsageError: If a file that describes it cannot be read, or it is a peft adapter other than a LoRA.
    """
    path, name = checked("model", name, Path), str(name)
    if name in OWN_BACKBONES:
        return ModelName(name, "backbone")
    if path.is_file() and path.suffix == ".pt":
        run = path.parent.parent if path.parent.name == CHECKPOINTS_FOLDER else path.parent
        return _training_run(name, run, path)
    folder = path
    if not path.exists() and has_owner(name):
        try:
            folder = download_adapter(name)
        except MissingError:
            return ModelName(name, "backbone")  # loading it will report the hub's error
    if (folder / POLICY_FILE).exists():
        return _shared_policy(name, folder)
    if config_file(folder).exists():
        return _adapter(name, folder)
    if (path / "run.json").exists() and not (path / "config.json").exists():
        return _training_run(name, path, last_checkpoint(path))
    return ModelName(name, "backbone")


def config_file(folder: Path) -> Path:
    """The file that describes the plug-in or LoRA in a folder; it may be missing."""
    return folder / (OPTION_FILE if (folder / OPTION_FILE).exists() else CONFIG_FILE)


def is_hub_id(name: str) -> bool:
    """Whether a name is valid for a repository on the hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def has_owner(name: str) -> bool:
    """Whether a name has the form user/name, the only one that the hub allows for new repositories."""
    return name.count("/") == 1 and is_hub_id(name)


def _adapter(name: str, folder: Path) -> ModelName:
    description = read_object(config_file(folder))
    kind: Kind = "lora" if "peft_type" in description else "options"
    if kind == "lora" and description["peft_type"] != "LORA":
        raise UsageError(f"{name} is an adapter of peft of type {description['peft_type']}; only LoRA is supported")
    has_run = (folder / "run.json").exists()  # not if it was saved from Python or comes from the hub
    places = places_in(read_record(folder / "run.json")) if has_run else {}
    return ModelName(name, kind, folder, description, places=places)


def _training_run(name: str, folder: Path, checkpoint: Path | None) -> ModelName:
    run = read_record(folder / "run.json")
    if run["kind"] != "train":
        advice = "without a result; let it finish by the same command"
        if models := such_as(folder, "sft", "train"):
            advice = f"with models in it; give one of them{models}"
        raise MissingError(f"{name} holds a run of ollm-rl {run['kind']} {advice}")
    return ModelName(name, "run", folder, run["config"], checkpoint, places_in(run))


def _shared_policy(name: str, folder: Path) -> ModelName:
    saved = read_object(folder / POLICY_FILE, {"config": {}, "backbone_fingerprint": str}, remedy=COPY)
    weights, options, config = folder / POLICY_WEIGHTS, folder / POLICY_OPTIONS, dict(saved["config"])
    if not weights.exists():
        raise MissingError(f"{name} holds a policy without its weights (no {POLICY_WEIGHTS}); {COPY}")
    if config.get("action_space") == "options":
        config["model"] = str(options)  # they lie beside it, wherever it was trained
    return ModelName(name, "run", folder, config, weights, backbone_fingerprint=saved["backbone_fingerprint"])


def download_adapter(repo_id: str) -> Path:
    """Download a hub repository's plug-in, LoRA or policy into the hub's cache. What is cached needs no network.

    Raises:
        MissingError: If there is no such repository, or the hub is unreachable; raised without long retries.
    """
    reachable = hub_answers()
    try:
        of_plug_in = [OPTION_FILE, CONFIG_FILE, WEIGHTS_FILE]
        files = [*of_plug_in, POLICY_FILE, POLICY_WEIGHTS, *(f"{POLICY_OPTIONS}/{file}" for file in of_plug_in)]
        return Path(HfApi().snapshot_download(repo_id, allow_patterns=files, local_files_only=not reachable))
    except (HTTPError, OSError) as error:
        if not reachable:
            reason = "the hub is out of reach"
        elif isinstance(error, RepositoryNotFoundError):  # the hub does not distinguish the two cases
            reason = "no such hub repository, or a private one: hf auth login"
        else:
            reason = one_line(error)
        raise MissingError(
            f"{repo_id} holds no option plug-in (no such folder; {reason}); train one with ollm-rl sft, or name a "
            "folder or hub repository that holds one"
        ) from error
