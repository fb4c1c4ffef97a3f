"""Numbers that are not finite end a run in one line and are never saved, loaded or trained on."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ollm_rl.agents.config import RewardConfig
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.agents.training.trainer import train
from ollm_rl.agents.training.update import Updater
from ollm_rl.backbones.loading import load_backbone
from ollm_rl.backbones.names import WEIGHTS_FILE
from ollm_rl.cli import main
from ollm_rl.errors import RunError, UsageError
from ollm_rl.options.model import OptionModel
from ollm_rl.runs import last_checkpoint
from tests.training_runs import ONES, checkpoint, config, naming


@pytest.fixture(autouse=True)
def options_name_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))


@pytest.mark.parametrize(
    "settings", [{"policy": "latent"}, {"algorithm": "ppo"}, {"action_space": "tokens", "algorithm": "ppo"}]
)
def test_a_learning_rate_that_breaks_the_weights_ends_the_run(
    tmp_path: Path, model_folder: Path, data: str, settings: dict[str, Any]
) -> None:
    broken = config(tmp_path / "run", model_folder, data, learning_rate=1e30, **settings)
    with pytest.raises(RunError, match=r"is not finite in iteration \d; lower learning_rate=1e\+30") as raised:
        train(broken)
    assert "\n" not in str(raised.value)
    path = last_checkpoint(broken.out)
    assert (f"the last good checkpoint is {path}" if path else "no checkpoint was saved yet") in str(raised.value)


def test_the_last_good_checkpoint_stays_the_last_and_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    settings = config(tmp_path / "run", model_folder, data)
    train(settings, lambda row: row["iteration"] < 1)
    before = checkpoint(settings.out)
    best = (settings.out / "best.pt").read_bytes()
    monkeypatch.setattr(
        "ollm_rl.agents.training.update.reinforce_loss", lambda log_ratio, gains: (log_ratio * math.nan).sum()
    )
    with pytest.raises(RunError, match=r"^grad_norm is not finite in iteration 2; .*/000002.pt$"):
        train(settings)
    assert checkpoint(settings.out) == before and (settings.out / "best.pt").read_bytes() == best
    monkeypatch.undo()
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    train(settings)  # goes on from there


def test_a_gradient_that_is_not_finite_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    whole = Updater._gradient

    def gradient(self: Updater, *arguments: Any) -> dict[str, torch.Tensor]:
        terms = whole(self, *arguments)
        self.optimizer.param_groups[0]["params"][0].grad.fill_(math.inf)
        return terms

    monkeypatch.setattr(Updater, "_gradient", gradient)
    with pytest.raises(RunError, match="^grad_norm is not finite in iteration 0"):
        train(config(tmp_path / "run", model_folder, data))


def test_weights_that_are_not_finite_are_not_loaded(tmp_path: Path, model_folder: Path, data: str) -> None:
    run = train(config(tmp_path / "run", model_folder, data, iterations=1, policy="latent"))
    path = last_checkpoint(run)
    assert path is not None
    state = torch.load(path, weights_only=True)
    state["policy"]["policy.3.bias"][0] = math.nan
    torch.save(state, path)
    with pytest.raises(UsageError, match=r"policy.3.bias in the checkpoint is not finite; .* such as best.pt"):
        load_policy(str(run))
    assert load_policy(str(run / "best.pt"))


def test_a_plug_in_or_backbone_that_is_not_finite_is_not_loaded(model_folder: Path) -> None:
    weights = load_file(model_folder / WEIGHTS_FILE)
    name = min(weights)
    weights[name].view(-1)[0] = math.inf
    save_file(weights, model_folder / WEIGHTS_FILE)
    with pytest.raises(UsageError, match=f"{name} in .* is not finite; train or download it again"):
        OptionModel.from_pretrained(model_folder)
    backbone, tokenizer = load_backbone(str(model_folder.parent / "backbone"))
    next(backbone.parameters()).data[0, 0] = math.nan
    broken = model_folder.parent / "broken"
    backbone.save_pretrained(broken)
    tokenizer.save_pretrained(broken)
    with pytest.raises(UsageError, match="has weights that are not finite .model.embed_tokens.weight.; train or"):
        load_backbone(str(broken))


@pytest.mark.parametrize("stage", ["options", "lora", "backbone"])
def test_supervised_training_that_breaks_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    arguments = ["sft", "--out", str(tmp_path / "sft"), "--stage", stage, "--learning_rate", "1e30", "--limit", "64"]
    small = ["--max_steps", "20", "--batch_size", "4", "--logging_steps", "1", "--save_steps", "1", "--device", "cpu"]
    assert main([*arguments, *small]) == 1
    (line,) = re.findall("ollm-rl: .*", capsys.readouterr().err)
    assert "is not finite in step" in line and "lower learning_rate=1e+30" in line
    assert "the last good checkpoint is" in line or "no checkpoint was saved yet" in line


def test_rewards_that_are_all_zero_are_refused() -> None:
    with pytest.raises(UsageError, match="all weights of rewards are 0"):
        RewardConfig(correctness=0.0)
