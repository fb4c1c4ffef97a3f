"""The model and the problems of training runs."""

import json
from pathlib import Path

import pytest
import torch

from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.tiny_models import save_backbone


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A saved option model of four options with its backbone."""
    torch.manual_seed(0)
    name = save_backbone(tmp_path / "backbone")
    OptionModel.from_backbone(name, OptionConfig(num_options=4, width=8)).save_pretrained(tmp_path / "options")
    return tmp_path / "options"


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Problems that random completions sometimes solve; the last digit of a completion counts."""
    path = tmp_path / "problems.jsonl"
    rows = [{"question": f"Give {word}?", "answer": digit} for word, digit in zip("abcdefg", "1234123", strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{path}"
