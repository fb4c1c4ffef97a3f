"""Damaged files of the supervised stage: the checkpoint before is used, or one line says what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ollm_rl.backbones.loading import load_backbone
from ollm_rl.backbones.lora import load_lora
from ollm_rl.cli import main
from ollm_rl.errors import UsageError
from ollm_rl.files.checksums import SUMS_FILE, check_folder
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from tests.damage import DAMAGES, flip, garbage, refusal, truncate
from tests.tiny_models import save_backbone

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, problems, and a finished run of every stage with checkpoints after steps 2 and 4."""
    folder = tmp_path_factory.mktemp("origin")
    save_backbone(folder / "plain")
    rows = [{"question": f"{a}+1?", "solution": f"#### {a + 1}", "answer": a + 1} for a in range(9)]
    (folder / "solved.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for stage in ("options", "lora", "backbone"):
        run_sft(settings(folder, folder / stage))
    return folder


def settings(origin: Path, out: Path) -> SFTConfig:
    stage = out.name
    changes: dict[str, Any] = {"stage": stage}
    if stage == "options":
        changes["options"] = OptionConfig(num_options=4, width=8)
    return SFTConfig(
        out=out,
        backbone=str(origin / "plain"),
        data=f"jsonl:{origin / 'solved.jsonl'}",
        max_steps=4,
        batch_size=4,
        save_steps=2,
        logging_steps=2,
        device="cpu",
        **changes,
    )


DESCRIPTIONS = {"options": "option_config.json", "lora": "adapter_config.json"}


def unfinished(origin: Path, tmp_path: Path, stage: str) -> SFTConfig:
    """Settings of a copy of a run that was killed after its last checkpoint."""
    shutil.copytree(origin / stage, tmp_path / stage)
    for name in ("option_config.json", "adapter_config.json", "config.json"):
        (tmp_path / stage / name).unlink(missing_ok=True)
    return settings(origin, tmp_path / stage)


def weights(out: Path) -> dict[str, torch.Tensor]:
    (path,) = out.glob("*.safetensors")
    return load_file(path)


@pytest.mark.parametrize(
    ("stage", "name", "damage"),
    [
        ("options", "adapter_model.safetensors", flip),
        ("options", "trainer_state.json", truncate),
        ("lora", "optimizer.pt", flip),
        ("backbone", "model.safetensors", garbage),
    ],
)
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one_and_ends_the_same(
    origin: Path, tmp_path: Path, stage: str, name: str, damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    config = unfinished(origin, tmp_path, stage)
    damage(config.out / "checkpoint-4" / name)
    run_sft(config)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if " is damaged" in line]
    assert line.startswith(f"{config.out}/checkpoint-4/{name} is damaged") and "checkpoint before it is used" in line
    assert sorted(path.name for path in config.out.glob("**/checkpoint-*")) == [
        "checkpoint-2", "checkpoint-4", "checkpoint-4"
    ]  # fmt: skip
    expected, found = weights(origin / stage), weights(config.out)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_if_no_checkpoint_is_intact_one_line_says_so_now_and_later(origin: Path, tmp_path: Path) -> None:
    config = unfinished(origin, tmp_path, "options")
    for step in (2, 4):
        flip(config.out / f"checkpoint-{step}" / "optimizer.pt")
    for _ in range(2):
        with pytest.raises(UsageError, match="options holds only damaged checkpoints .*; train again in another out"):
            run_sft(config)


def test_a_checkpoint_from_before_checksums_is_used(origin: Path, tmp_path: Path) -> None:
    config = unfinished(origin, tmp_path, "options")
    shutil.rmtree(config.out / "checkpoint-4")
    (config.out / "checkpoint-2" / SUMS_FILE).unlink()
    run_sft(config)
    assert all(torch.equal(weights(config.out)[name], weight) for name, weight in weights(origin / "options").items())


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_not_loaded(origin: Path, tmp_path: Path, damage: Damage) -> None:
    for stage in ("options", "lora", "backbone"):
        folder = tmp_path / stage
        shutil.copytree(origin / stage, folder)
        (path,) = folder.glob("*.safetensors")
        damage(path)
        with pytest.raises(UsageError, match=f"{path} (is damaged|cannot be read)") as raised:
            if stage == "options":
                OptionModel.from_pretrained(folder)
            elif stage == "lora":
                load_lora(load_backbone(str(origin / "plain"))[0], str(folder))
            else:
                load_backbone(str(folder))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("damage", DAMAGES[1:])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_backbone_without_checksums_that_is_broken_gets_one_line(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Damage
) -> None:
    shutil.copytree(origin / "plain", tmp_path / "plain")
    damage(tmp_path / "plain" / name)
    assert "cannot be loaded" in refusal(capsys, "eval", "--model", tmp_path / "plain", "--limit", "2")


@pytest.mark.parametrize("stage", ["options", "lora"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"peft_type": "LORA"}', "\0\0"])
def test_a_broken_description_of_an_adapter_gets_one_line(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, content: str
) -> None:
    shutil.copytree(origin / stage, tmp_path / stage)
    (tmp_path / stage / DESCRIPTIONS[stage]).write_text(content)
    message = refusal(capsys, "eval", "--model", tmp_path / stage, "--limit", "2")
    assert str(tmp_path / stage) in message and "copy it again" in message


def test_the_name_of_the_backbone_may_be_corrected(origin: Path, tmp_path: Path) -> None:
    shutil.copytree(origin / "lora", tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "moved")}))
    shutil.copytree(origin / "plain", tmp_path / "moved")
    assert check_folder(tmp_path / "lora")
    data = ["--data", f"jsonl:{origin / 'solved.jsonl'}"]
    assert main(["eval", "--model", str(tmp_path / "lora"), *data, "--limit", "1", "--max_new_tokens", "2"]) == 0
