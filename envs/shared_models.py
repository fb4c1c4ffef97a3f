"""One option model for all environments of a process that name the same folder, as in a ``SyncVectorEnv``."""

from pathlib import Path
from weakref import WeakValueDictionary

from ollm_rl.options.hub import local_folder
from ollm_rl.options.model import OptionModel
from ollm_rl.safekeeping.places import fingerprint_of

# By path and content; weak, so that the last environment that is closed and dropped frees the memory.
_LOADED: WeakValueDictionary[tuple[str, str], OptionModel] = WeakValueDictionary()


def shared_model(name: Path) -> OptionModel:
    """The option model of a folder or hub id: the one that another environment holds, else loaded.

    Environments never train it, so they can share it. Weights trained meanwhile in that folder are another model.

    Raises:
        UsageError: As `OptionModel.from_pretrained`.
        MissingError: If the folder holds no option model.
    """
    folder = local_folder(name)
    key = str(folder.resolve()), fingerprint_of(folder)
    model = _LOADED.get(key)
    if model is None:
        model = _LOADED[key] = OptionModel.from_pretrained(folder)
    return model
