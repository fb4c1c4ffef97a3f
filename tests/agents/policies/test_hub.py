"""A trained policy with its options in one folder or hub repository: saved, uploaded, evaluated by its id, refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

import ollm_rl.backbones.names as names_module
from ollm_rl.agents import load_policy, train_agent
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.hub import push_to_hub, save_policy
from ollm_rl.cli import main
from ollm_rl.errors import UsageError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.folder_hub import FolderHub, reachable
from tests.tiny_models import save_backbone
from tests.training_runs import config, weights

FILES = {"policy.safetensors", "policy_config.json"}
OPTIONS = {"options/option_config.json", "options/adapter_model.safetensors"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHub:
    return reachable(tmp_path / "hub", monkeypatch)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone, options on it, problems, and a run over the options. No test changes it."""
    folder = tmp_path_factory.mktemp("world")
    backbone = save_backbone(folder / "backbone")
    OptionModel.from_backbone(backbone, OptionConfig(num_options=4, width=8)).save_pretrained(folder / "options")
    (folder / "problems.jsonl").write_text(json.dumps({"question": "Give a?", "answer": "111"}))
    train_agent(settings(folder, "run", temperature=0.5))
    return folder


@pytest.fixture
def run(world: Path) -> Path:
    return world / "run"


def settings(world: Path, out: str, **changes: Any) -> RLConfig:
    changes = {"iterations": 1, "algorithm": "ppo", "gae_lambda": 0.0} | changes
    return config(world / out, world / "options", f"jsonl:{world}/problems.jsonl", **changes)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def trained(name: str | Path) -> dict[str, torch.Tensor]:
    policy, _ = load_policy(str(name))
    assert policy.temperature == 1
    return {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refusal(name: Path | str) -> str:
    with pytest.raises(UsageError) as raised:
        load_policy(str(name))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_saved_policy_needs_neither_the_run_nor_its_options(world: Path, tmp_path: Path) -> None:
    folder, before = save_policy(world / "run", tmp_path / "shared"), weights(world / "run")
    assert names(folder) == FILES | OPTIONS
    hidden = (world / "options").rename(world / "hidden")
    try:
        assert_same(trained(folder.rename(tmp_path / "moved")), before)
    finally:
        hidden.rename(world / "options")


def test_a_pushed_policy_is_evaluated_by_its_id_as_the_run_is_by_its_folder(
    hub: FolderHub, world: Path, run: Path, tmp_path: Path
) -> None:
    assert push_to_hub(run / "best.pt", "user/policy") == "https://huggingface.co/user/policy"
    assert names(hub.repositories / "user/policy") == FILES | OPTIONS | {"README.md"}
    flags = [
        "--data",
        f"jsonl:{world}/problems.jsonl",
        "--max_new_tokens",
        "3",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "eval"),
    ]
    assert main(["eval", "--model", str(run), "user/policy", *flags]) == 0
    first, second = (json.loads(path.read_text()) for path in sorted((tmp_path / "eval").glob("*--*.json")))
    assert {first["model"], second["model"]} == {str(run), "user/policy"}
    assert first["completions"] == second["completions"]
    assert names(hub.cache / "user/policy") == FILES | OPTIONS
    card = (hub.repositories / "user/policy/README.md").read_text()
    assert "ollm-rl eval --model user/policy" in card and 'load_policy("user/policy")' in card
    (row,) = json.loads((run / "metrics.json").read_text())
    assert f"| `reward` | {row['reward']:.4g} |" in card and "| `temperature` | 0.5 |" in card
    assert "| `gae_lambda` | 0.0 |" in card, "a zero that is no default"
    assert not any(word in card for word in ("None", "kl_target", "`report_to`", "`rewards`", "`out`"))


def test_a_cached_policy_is_found_without_a_network(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "cache/models--user--policy"
    save_policy(run, repository / "snapshots/0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123abcd")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(names_module, "hub_answers", lambda: False)
    assert_same(trained("user/policy"), weights(run))


def test_a_policy_over_tokens_is_tied_to_its_backbone(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "backbone", tmp_path / "backbone")
    run = train_agent(replace(settings(world, "tokens", action_space="tokens"), model=str(tmp_path / "backbone")))
    folder = save_policy(run, tmp_path / "shared")
    assert names(folder) == FILES
    assert_same(trained(folder), weights(run))
    save_backbone(tmp_path / "backbone", seed=1)
    assert "was trained on backbone" in refusal(folder) and "put the backbone it was trained on there" in refusal(
        folder
    )


def test_what_is_no_run_of_ours_is_not_saved(world: Path, tmp_path: Path) -> None:
    run = shutil.copytree(world / "run", tmp_path / "run")

    def refused(name: Path) -> str:
        with pytest.raises(UsageError) as raised:
            save_policy(name, tmp_path / "shared")
        return str(raised.value)

    assert "holds an option plug-in" in refused(world / "options")
    shared = save_policy(run, tmp_path / "saved")
    assert "is a saved policy already" in refused(shared)
    with pytest.raises(UsageError, match="options' holds other files, such as adapter_model.safetensors; give a new"):
        save_policy(run, world / "options")
    assert save_policy(run, shared) == shared
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    shutil.rmtree(run / "checkpoints")
    assert "has saved no checkpoint yet" in refused(run)
    (run / "run.json").write_text(json.dumps(record | {"config": record["config"] | {"agent": "sb3-ppo"}}))
    assert "holds an agent of stable-baselines3" in refused(run)
    assert not (tmp_path / "shared").exists()


def test_an_incomplete_or_damaged_policy_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    folder = save_policy(run, tmp_path / "shared")
    data = bytearray((folder / "policy.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "policy.safetensors").write_bytes(data)
    assert "policy.safetensors is damaged" in refusal(folder)
    (folder / "policy.safetensors").unlink()
    assert refusal(folder).endswith("without its weights (no policy.safetensors); copy or download it again")
    save_policy(run, folder)
    shutil.rmtree(folder / "options")
    assert "was trained on that model" in refusal(folder)
    (folder / "policy_config.json").write_text("{}")
    assert "policy_config.json" in refusal(folder)


def test_training_does_not_take_a_shared_folder_for_its_own(world: Path, run: Path, tmp_path: Path) -> None:
    folder = save_policy(run, tmp_path / "shared")
    with pytest.raises(UsageError, match="holds no run of ours"):
        train_agent(replace(settings(world, "run", temperature=0.5), out=folder))
