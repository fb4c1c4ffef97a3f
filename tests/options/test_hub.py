"""Plug-ins on the hub, here a local folder: uploaded files, the content of the card, and every refusal."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError

import ollm_rl.backbones.names as names_module
import ollm_rl.options.hub as hub_module
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.hub import local_folder, model_card, push_to_hub
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.sft import run_sft
from tests.folder_hub import FolderHub, reachable
from tests.pretrain.test_sft import config
from tests.tiny_models import save_backbone, tiny_model

PLUG_IN = {"option_config.json", "adapter_model.safetensors"}
DESCRIPTION: dict[str, Any] = {
    "num_options": 12,
    "width": 16,
    "kl_target": 0.3,
    "kl_weight_init": 0.1,
    "hidden_size": 576,
    "vocab_size": 49152,
    "backbone": "HuggingFaceTB/SmolLM2-135M",
    "backbone_fingerprint": "0123456789abcdef",
}
METRICS = [
    {"loss": 3.5, "kl": 0.5, "step": 10},
    {"loss": 2.123456, "kl": 0.25, "step": 12345},
    {"train_loss": 2.75, "train_runtime": 98.7, "step": 12345},
]
RUN: dict[str, Any] = {
    "kind": "sft",
    "config": {},
    "commit": "1f597431f597",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "machine": "Linux x86_64, 2 cores",
    "command": "ollm-rl sft --out runs/options",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHub:
    return reachable(tmp_path / "hub", monkeypatch)


@pytest.fixture
def model() -> OptionModel:
    torch.manual_seed(0)
    return OptionModel(tiny_model("llama"), OptionConfig(num_options=4, width=16, kl_target=0.3))


@pytest.fixture
def folder(tmp_path: Path, model: OptionModel) -> Path:
    model.save_pretrained(tmp_path / "options")
    return tmp_path / "options"


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def refused(name: str) -> str:
    """The one-line message with which a name is refused."""
    with pytest.raises(FileNotFoundError) as raised:
        local_folder(name)
    return str(raised.value)


def test_a_pushed_plug_in_comes_back_with_the_same_logits_bit_for_bit(
    hub: FolderHub, folder: Path, model: OptionModel
) -> None:
    assert push_to_hub(folder, "user/options") == "https://huggingface.co/user/options"
    assert names(hub.repositories / "user/options") == PLUG_IN | {"README.md"}
    downloaded = local_folder("user/options")
    assert names(downloaded) == PLUG_IN
    loaded = OptionModel.from_pretrained(downloaded, tiny_model("llama"))
    hidden = model.hidden_states(torch.arange(1, 13).reshape(2, 6))
    assert torch.equal(loaded.decode_options(hidden), model.decode_options(hidden))
    assert torch.equal(loaded.option_logits(hidden), model.option_logits(hidden))


def test_only_plug_in_card_metrics_and_origin_of_a_run_folder_are_uploaded(hub: FolderHub, tmp_path: Path) -> None:
    data = tmp_path / "solved.jsonl"
    data.write_text(json.dumps({"question": "1+1?", "solution": "#### 2", "answer": 2}))
    backbone = save_backbone(tmp_path / "backbone")
    out = run_sft(config(tmp_path / "run", backbone, f"jsonl:{data}", max_steps=2, save_steps=1, logging_steps=1))
    assert names(out) > {"checkpoint-1/option_config.json", "tokenizer.json"}
    push_to_hub(out, "user/options")
    uploaded = hub.repositories / "user/options"
    assert names(uploaded) == PLUG_IN | {"README.md", "metrics.json", "run.json"}
    card = (uploaded / "README.md").read_text()
    loss = [line["loss"] for line in json.loads((out / "metrics.json").read_text()) if "loss" in line][-1]
    assert f"| `loss` | {loss:.4g} |" in card
    assert json.loads((out / "run.json").read_text())["command"] in card


def test_the_card_parses_and_names_backbone_options_and_kl_target() -> None:
    card = ModelCard(model_card(DESCRIPTION, repo_id="user/options"))
    assert card.data.to_dict() == {
        "library_name": "ollm-rl",
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "base_model_relation": "adapter",
        "tags": ["ollm-rl", "options", "latent-actions", "reinforcement-learning"],
    }
    assert "12 learned options" in card.text and "arXiv 2604.19087" in card.text
    assert "`HuggingFaceTB/SmolLM2-135M`, fingerprint `0123456789abcdef`" in card.text
    assert "| `num_options` | 12 |\n" in card.text and "| `kl_target` | 0.3 |\n" in card.text
    assert 'OptionModel.from_pretrained("user/options")' in card.text
    assert "metrics" not in card.text and "Origin" not in card.text  # neither exists here


def test_the_card_shows_the_last_metrics_with_a_loss_and_the_origin_of_the_run(hub: FolderHub, folder: Path) -> None:
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "run.json").write_text(json.dumps(RUN))
    push_to_hub(folder, "user/options")
    card = ModelCard.load(hub.repositories / "user/options" / "README.md").text
    table = card.split("## Last logged metrics")[1].split("## Origin")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert rows == ["| `loss` | 2.123 |", "| `kl` | 0.25 |", "| `step` | 12345 |"]
    for said in ("ollm-rl sft --out runs/options", "`1f597431f597`", "Linux x86_64, 2 cores", "torch 2.13.0\n"):
        assert said in card.split("## Origin")[1]


@pytest.mark.parametrize(
    ("backbone", "base_model", "loads"),
    [
        ("openai-community/gpt2", "openai-community/gpt2", '("user/options")'),
        ("tiny-arith", None, '("user/options")'),
        ("smollm2-135m", None, '("user/options")'),
        ("/home/me/my-backbone", None, '("user/options", backbone)'),
        ("", None, '("user/options", backbone)'),
    ],
)
def test_the_card_links_backbones_of_the_hub_and_asks_for_those_that_have_no_public_name(
    backbone: str, base_model: str | None, loads: str
) -> None:
    card = ModelCard(model_card({**DESCRIPTION, "backbone": backbone}, repo_id="user/options"))
    assert card.data.get("base_model") == base_model
    assert card.data.get("base_model_relation") == ("adapter" if base_model else None)
    assert f"OptionModel.from_pretrained{loads}\n" in card.text


def test_a_backbone_in_a_local_folder_is_not_linked_though_its_name_could_be_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/backbone").mkdir(parents=True)
    card = ModelCard(model_card({**DESCRIPTION, "backbone": "runs/backbone"}, repo_id="user/options"))
    assert card.data.get("base_model") is None


def test_a_card_written_by_hand_is_uploaded_as_it_is(hub: FolderHub, folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    push_to_hub(folder, "user/options")
    assert (hub.repositories / "user/options" / "README.md").read_text() == "mine"


def test_a_second_push_goes_to_the_same_repository(hub: FolderHub, folder: Path) -> None:
    push_to_hub(folder, "user/options", private=True)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    push_to_hub(folder, "user/options")
    assert json.loads((hub.repositories / "user/options" / "metrics.json").read_text()) == METRICS
    assert hub.private == {"user/options": True}


@pytest.mark.parametrize("missing", sorted(PLUG_IN))
def test_a_folder_without_a_plug_in_is_not_pushed(hub: FolderHub, folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError) as raised:
        push_to_hub(folder, "user/options")
    assert str(raised.value) == f"{folder} holds no option plug-in (no {missing}); train one with ollm-rl sft"
    assert not hub.repositories.exists()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("option_config.json", '{"num_options": 4', "JSONDecodeError"),
        ("option_config.json", '{"peft_type": "LORA"}', "KeyError: 'backbone'"),
        ("metrics.json", "[1, 2", "JSONDecodeError"),
    ],
)
def test_a_folder_with_invalid_files_is_not_pushed(
    hub: FolderHub, folder: Path, file: str, content: str, reason: str
) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ValueError) as raised:
        push_to_hub(folder, "user/options")
    assert str(raised.value).startswith(f"{folder} cannot be described ({reason}")
    assert str(raised.value).endswith("again") and "\n" not in str(raised.value)
    assert not hub.repositories.exists()


@pytest.mark.parametrize("repo_id", ["options", "user/my/options", "user/my options", ""])
def test_a_repository_needs_the_name_of_its_owner_and_its_own(hub: FolderHub, folder: Path, repo_id: str) -> None:
    with pytest.raises(ValueError, match=f"repo_id='{repo_id}' is not a name on the hub; give user/name"):
        push_to_hub(folder, repo_id)


def test_without_a_token_the_login_is_named(hub: FolderHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "get_token", lambda: None)
    with pytest.raises(ValueError, match="no token to push user/options with; run hf auth login, or give token"):
        push_to_hub(folder, "user/options")
    assert push_to_hub(folder, "user/options", token="hf_other") == "https://huggingface.co/user/options"


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (HfHubHTTPError("403 Forbidden.\n\nNo rights", response=Mock()), "403 Forbidden. No rights"),
        (OSError("Name or service not known"), "Name or service not known"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line_and_leaves_no_card(
    hub: FolderHub, folder: Path, refusal: Exception, reason: str
) -> None:
    hub.refusal = refusal
    with pytest.raises(ValueError) as raised:
        push_to_hub(folder, "user/options")
    assert str(raised.value) == f"user/options cannot be pushed ({reason}); check the name, network and hf auth login"
    assert names(folder) == PLUG_IN


def test_a_local_folder_is_used_even_if_the_hub_has_its_name(
    hub: FolderHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_to_hub(folder, "user/options")
    assert local_folder(folder) == folder
    monkeypatch.chdir(folder.parent)
    shutil.copytree(folder, "user/options")
    assert local_folder("user/options") == Path("user/options")


def test_a_plug_in_downloaded_once_is_found_without_the_hub(
    hub: FolderHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_to_hub(folder, "user/options")
    first = local_folder("user/options")
    monkeypatch.setattr(names_module, "hub_answers", lambda: False)
    assert local_folder("user/options") == first


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "./no/folder", "runs/no/folder"])
def test_a_name_that_no_repository_can_have_is_refused_without_asking_the_hub(
    hub: FolderHub, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_module, "hub_answers", lambda: pytest.fail("asked"))
    assert refused(name) == f"{name} holds no option plug-in (no option_config.json); train one with ollm-rl sft"


def test_a_folder_or_a_repository_without_a_plug_in_is_refused(hub: FolderHub, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (hub.repositories / "user/other").mkdir(parents=True)
    (hub.repositories / "user/other" / "model.safetensors").write_bytes(b"")
    (hub.cache / "user/other").mkdir(parents=True)
    for name in (str(tmp_path / "empty"), "user/other"):
        assert refused(name) == f"{name} holds no option plug-in (no option_config.json); train one with ollm-rl sft"


def test_an_unknown_repository_is_refused_in_one_line_that_says_why_and_what_to_do(
    hub: FolderHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (
        "user/nothing holds no option plug-in (no such folder; {}); train one with ollm-rl sft, or name a folder or "
        "hub repository that holds one"
    )
    assert refused("user/nothing") == line.format("no such hub repository, or a private one: hf auth login")
    hub.refusal = HfHubHTTPError("500 Server Error.\n\nOut of order", response=Mock())
    assert refused("user/nothing") == line.format("500 Server Error. Out of order")
    monkeypatch.setattr(names_module, "hub_answers", lambda: False)
    assert refused("user/nothing") == line.format("the hub is out of reach")
