"""The model and the problems of training runs, and a single thread."""

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.processes import process_server
from tests.tiny_models import save_backbone

# One torch thread, here and in child processes: several would mostly wait for each other on models this small, and sums
# would depend on how many there are.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def processes() -> Iterator[None]:
    """The server of `run_process`, which is there before the first test."""
    with process_server():
        yield


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> None:
    """Garbage collection leaves out what is there already: Trainer asks for it in every run, half a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A saved option model of four options with its backbone."""
    torch.manual_seed(0)
    name = save_backbone(tmp_path / "backbone")
    OptionModel.from_backbone(name, OptionConfig(num_options=4, width=8)).save_pretrained(tmp_path / "options")
    return tmp_path / "options"


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Problems that random completions of three ONES sometimes solve."""
    path = tmp_path / "problems.jsonl"
    answers = ("111", "112", "111", "211", "111", "121", "111")
    rows = [{"question": f"Give {word}?", "answer": answer} for word, answer in zip("abcdefg", answers, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{path}"
