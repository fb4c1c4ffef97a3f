"""Several processes learn the vocabulary as one: the same gradient, the same run, and one of them writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ollm_rl.agents.training.trainer import train
from ollm_rl.cli import main
from tests.agents.training.test_update import config as update_config
from tests.agents.training.test_update import token_policy, update
from tests.processes import run_processes
from tests.training_runs import config, history, weights


def gradients(out: Path) -> None:
    """Write the gradients, by name, and the logged terms of one update of four episodes."""
    settings = update_config(
        action_space="tokens", algorithm="ppo", lora_rank=4, ent_coef=0.1, kl_coef=0.1, max_grad_norm=1e6
    )
    policy = token_policy()
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.add_(0.1)  # so that the policy differs from the one before training
    _, terms = update(policy, settings)
    found = {name: weight.grad for name, weight in policy.named_parameters() if weight.requires_grad}
    torch.save((found, terms), out / f"{torch.distributed.get_rank() if torch.distributed.is_initialized() else 2}.pt")


def joined_gradients(out: Path) -> None:
    from ollm_rl.processes import join

    join("cpu")
    gradients(out)


def test_the_gradient_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    gradients(tmp_path)
    assert run_processes(tmp_path / "said", joined_gradients, tmp_path) == [0, 0]
    one, *others = (torch.load(tmp_path / f"{rank}.pt") for rank in (2, 0, 1))
    assert float(one[1]["kl"]) > 1e-4 and max(float(gradient.abs().max()) for gradient in one[0].values()) > 1e-2
    for found, terms in others:
        assert terms == pytest.approx(one[1], rel=1e-5, abs=1e-6)
        for name, gradient in one[0].items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(others[0][0][name], others[1][0][name]) for name in one[0])


def run(iterations: int, settings: dict[str, Any]) -> None:
    train(config(**settings, iterations=iterations))


def test_two_processes_train_and_resume_as_one(model_folder: Path, data: str, tmp_path: Path) -> None:
    (tmp_path / "letters.py").write_text(
        "def share(completions, **_): return [sum(map(str.isalpha, c)) / 3 for c in completions]"
    )
    shared: dict[str, Any] = {
        "reward": [f"{tmp_path / 'letters.py'}:share"],
        "model": model_folder,
        "data": data,
        "action_space": "tokens",
    }
    shared |= {"eval_every": 16, "eval_data": data, "eval_limit": 4}
    run(2, {**shared, "out": tmp_path / "one"})
    two = {**shared, "out": tmp_path / "two"}
    for iterations in (1, 2):
        assert run_processes(tmp_path / "said", run, iterations, two) == [0, 0]
    assert all(row["mixed_groups"] > 0.5 for row in history(tmp_path / "one")), "there is something to learn"
    for row, other in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert other == pytest.approx(row, rel=1e-4, abs=1e-5, nan_ok=True)
    found = weights(tmp_path / "two")
    for name, weight in weights(tmp_path / "one").items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "said" / "1.out").read_text() == (tmp_path / "said" / "1.err").read_text() == ""
    assert not (tmp_path / "two" / "training.lock").exists()
    assert len(list((tmp_path / "two").glob("events*"))) == 2  # one per start
    episodes = [
        json.loads(line) for path in sorted((tmp_path / "two" / "completions").iterdir()) for line in path.open()
    ]
    assert len(episodes) == 32
    # A folder with another run: the first process says so, the other ends without a word.
    flags = ["--out", str(tmp_path / "two"), "--model", str(model_folder), "--data", data, "--action_space", "tokens"]
    codes = run_processes(tmp_path / "refused", main, ["train", *flags, "--device", "cpu", "--max_new_tokens", "3"])
    assert codes == [2, 1]
    assert (tmp_path / "refused" / "0.err").read_text().count("already holds a different run") == 1
    assert "ollm-rl" not in (tmp_path / "refused" / "1.err").read_text()
