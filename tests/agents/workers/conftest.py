"""An option model with problems, and Ray on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.tiny_models import EOS, VOCAB, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved option model whose options write only digits, spaces and the end of text.

    Quick comparisons decide such answers, so no worker starts processes that check them.
    """
    folder = tmp_path_factory.mktemp("workers")
    torch.manual_seed(0)
    backbone = tiny_model("llama")
    written = [EOS, *tiny_tokenizer()("123 ").input_ids]
    with torch.no_grad():
        backbone.lm_head.weight[[token for token in range(VOCAB) if token not in written]] = 0
    backbone.save_pretrained(folder / "backbone")
    tiny_tokenizer().save_pretrained(folder / "backbone")
    model = OptionModel.from_backbone(str(folder / "backbone"), OptionConfig(num_options=4, width=8))
    with torch.no_grad():
        model.adapter.decoder_out.weight *= 4  # so that the options differ
    model.save_pretrained(folder / "options")
    rows = [{"question": f"Give {word}?", "answer": digit} for word, digit in zip("abcdefg", "1231231", strict=True)]
    (folder / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
