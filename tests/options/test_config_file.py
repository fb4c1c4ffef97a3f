"""The file that describes a plug-in."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from ollm_rl.backbones.names import resolve
from ollm_rl.errors import MissingError
from ollm_rl.options.model import OptionModel
from tests.options.test_model import CONFIG, random_ids
from tests.tiny_models import save_backbone, tiny_model


def test_peft_does_not_take_a_plug_in_for_its_own_and_plug_ins_of_older_versions_are_read(tmp_path: Path) -> None:
    name = save_backbone(tmp_path / "backbone")
    model = OptionModel.from_backbone(name, CONFIG)
    model.save_pretrained(tmp_path / "plug-in")
    with pytest.raises(ValueError, match="Can't find 'adapter_config.json'"):
        PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "plug-in")
    (tmp_path / "plug-in" / "option_config.json").rename(tmp_path / "plug-in" / "adapter_config.json")
    assert resolve(tmp_path / "plug-in").kind == "options"
    loaded = OptionModel.from_pretrained(tmp_path / "plug-in")
    hidden = model.hidden_states(random_ids(1, 6))
    assert torch.equal(loaded.decode_options(hidden), model.decode_options(hidden))


def test_a_lora_is_no_plug_in(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "backbone"}')
    with pytest.raises(MissingError, match=f"^{tmp_path} holds a peft adapter, not an option plug-in; give an"):
        OptionModel.from_pretrained(tmp_path)
