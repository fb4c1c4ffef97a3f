"""Runs that are moved, copied or used from another folder find what they were trained on, and nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ollm_rl.agents.evaluation.groups import group_runs
from ollm_rl.agents.policies.anchored import AnchoredPolicy
from ollm_rl.agents.policies.loading import load_policy, trained_weights
from ollm_rl.agents.training.trainer import train
from ollm_rl.backbones.loading import load_backbone
from ollm_rl.backbones.lora import load_lora
from ollm_rl.errors import MissingError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from ollm_rl.safekeeping.places import fingerprint_of, located, places_of
from tests.tiny_models import save_backbone
from tests.training_runs import ONES, assert_equal_runs, config, history, naming

OPTIONS = OptionConfig(num_options=4, width=8)


def sft(out: str, stage: Any = "options") -> None:
    """A plug-in or LoRA of one step on the backbone ``models/backbone``, all paths relative."""
    changes: dict[str, Any] = {"options": OPTIONS} if stage == "options" else {"lora_rank": 2}
    changes |= {"max_steps": 1, "batch_size": 2, "save_steps": 1, "logging_steps": 1, "device": "cpu"}
    names: dict[str, Any] = {"backbone": "models/backbone", "data": "jsonl:solved.jsonl"}
    run_sft(SFTConfig(out=Path(out), stage=stage, **names, **changes))


def other_options(backbone: str, out: str) -> None:
    """Put another plug-in of the same shapes into a folder."""
    OptionModel.from_backbone(backbone, OPTIONS).save_pretrained(out)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a backbone, a plug-in ``models/options`` and problems, in which the test begins."""
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    save_backbone(folder / "models" / "backbone")
    rows = [{"question": f"{a}?", "solution": f"#### {a}", "answer": "111"} for a in range(4)]
    Path("solved.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sft("models/options")
    return folder


def settings(out: str, **changes: Any) -> Any:
    return config(Path(out), Path("models/options"), "jsonl:solved.jsonl", **changes)


@pytest.mark.parametrize("way", ["another working folder", "moved", "copied, and the original changed"])
def test_a_run_by_relative_paths_is_found_again(work: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    train(settings("models/latent", iterations=1))
    sft("models/lora", stage="lora")
    before = trained_weights(load_policy("models/latent")[0])
    elsewhere = work.parent / "elsewhere"
    if way == "moved":
        shutil.move(work, elsewhere)
    elif way.startswith("copied"):
        shutil.copytree(work, elsewhere)
        other_options("models/backbone", "models/options")
    else:
        elsewhere = work
    monkeypatch.chdir(work.parent)
    policy, _ = load_policy(str(elsewhere / "models" / "latent"))
    found = trained_weights(policy)
    assert all(torch.equal(found[name], before[name]) for name in before)
    # With the plug-in that the run was trained on, and a LoRA that names its backbone by the same path.
    options = OptionModel.from_pretrained(elsewhere / "models" / "options")
    assert isinstance(policy, AnchoredPolicy)
    assert torch.equal(options.adapter.decoder_out.weight, policy.model.adapter.decoder_out.weight)
    load_lora(options.backbone, str(elsewhere / "models" / "lora"))
    assert group_runs([elsewhere / "models" / "latent"])


def test_another_model_under_the_old_name_is_not_taken_for_that_of_the_run(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(settings("models/latent", iterations=1))
    moved = work.parent / "moved"
    shutil.move(work / "models", moved)
    other_options(f"{moved}/backbone", "models/options")
    assert isinstance(load_policy(str(moved / "latent"))[0], torch.nn.Module)
    shutil.rmtree(moved / "options")
    with pytest.raises(MissingError) as error:
        load_policy(str(moved / "latent"))
    parts = (
        f"{moved}/latent was trained on model='models/options', which is in none of models/options (has changed), ",
        f"{work}/models/options (has changed), ",
        f"{moved}/options (is missing); put it back",
    )
    assert all(part in str(error.value) for part in parts), error.value


def test_a_moved_run_resumes_by_its_new_paths(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = train(settings("models/undisturbed", iterations=2)).absolute()
    train(settings("models/stopped", iterations=2), lambda row: False)
    shutil.move("models", work.parent / "moved")
    monkeypatch.chdir(work.parent)
    resumed = config(Path("moved/stopped"), Path("moved/options"), f"jsonl:{work}/solved.jsonl", iterations=2)
    train(resumed)
    moved = work.parent / "moved"
    assert_equal_runs(moved / "stopped", moved / undisturbed.name)
    assert json.loads((moved / "stopped" / "run.json").read_text())["config"]["model"] == "moved/options"
    Path(work / "solved.jsonl").write_text('{"question": "Other?", "answer": "1"}')
    with pytest.raises(ValueError, match="already holds a different run .data is .*there, 'jsonl:other.jsonl' here"):
        shutil.copy(work / "solved.jsonl", "other.jsonl")
        train(config(Path("moved/stopped"), Path("moved/options"), "jsonl:other.jsonl", iterations=2))


def test_folders_of_older_versions_still_load(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollm_rl.backbones.names.hub_answers", lambda: False)
    train(settings("models/latent", iterations=1))
    for name in ("latent", "options"):
        path = Path("models") / name / "run.json"
        run = json.loads(path.read_text())
        del run["places"]
        path.write_text(json.dumps(run))
    load_policy("models/latent")
    shutil.move("models/options", "options")
    with pytest.raises(MissingError, match="model='models/options' is no folder, .*; models/latent was trained on"):
        load_policy("models/latent")
    shutil.move("options", "models/options")
    train(settings("models/latent", iterations=2))
    assert len(history(Path("models/latent"))) == 2


def test_a_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    backbone = Path(save_backbone(tmp_path / "one"))
    shutil.copytree(backbone, tmp_path / "two")
    assert fingerprint_of(backbone) == fingerprint_of(tmp_path / "two") != ""
    model, _ = load_backbone(str(backbone))
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    model.save_pretrained(tmp_path / "two")
    assert fingerprint_of(backbone) != fingerprint_of(tmp_path / "two")
    large, other = tmp_path / "large.jsonl", tmp_path / "other.jsonl"
    large.write_bytes(bytes(10**6))
    other.write_bytes(bytes(10**6 - 1) + b"1")
    assert fingerprint_of(large) != fingerprint_of(other)
    assert fingerprint_of(tmp_path / "nothing") == fingerprint_of(tmp_path) == ""


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_of_problems_is_found_beside_a_moved_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work/run").mkdir(parents=True)
    Path("work/problems").write_text("rows")
    name = f"{kind}:work/problems"
    place = places_of({"data": name}, Path("work/run"))["data"]
    assert located(name, "data", Path("work/run"), place) == name
    shutil.move("work", "moved")
    assert located(name, "data", Path("moved/run"), place) == f"{kind}:moved/problems"
