"""Training runs of about a second on problems that chance can solve, and readers of their files."""

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.training.update import Updater
from ollm_rl.runs import last_checkpoint
from tests.tiny_models import tiny_tokenizer

DIGITS = "1234"
ONES = "1121"  # three random ones are 111 in 27 of 64 cases, and 112, 121 or 211 in 9 each
Options = Callable[[Any, torch.Tensor], torch.Tensor]


def ids_of(text: str) -> list[int]:
    ids: list[int] = tiny_tokenizer()(text).input_ids
    return ids


def naming(text: str) -> Options:
    """Stands in for ``OptionModel.option_tokens``: in every state, option i writes the i-th character of ``text``."""
    tokens = torch.tensor(ids_of(text))
    return lambda model, hidden: tokens.to(hidden.device).expand(*hidden.shape[:-1], -1)


def config(out: Path, model: Path, data: str, **changes: Any) -> RLConfig:
    """Settings of a run that takes about a second."""
    settings: dict[str, Any] = {
        "out": out,
        "model": str(model),
        "data": data,
        "iterations": 4,
        "episodes": 16,
        "group_size": 4,
        "max_new_tokens": 3,
        "num_slots": 8,
        "minibatches": 2,
        "learning_rate": 1e-2,
        "device": "cpu",
        "seed": 3,
    }
    if changes.get("action_space") == "tokens" and "policy" not in changes:
        settings["lora_rank"] = 2
    return RLConfig(**settings | changes)


def die_at_step(number: int, before: Callable[[], object] = lambda: None) -> None:
    """Let this process, one of its own, be killed before a step of its updates, counted from 1."""
    whole, steps = Updater.step, 0

    def step(self: Updater, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == number:
            before()
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, *arguments)

    pytest.MonkeyPatch().setattr(Updater, "step", step)


def history(out: Path) -> list[dict[str, float]]:
    """All metrics except times."""
    rows = json.loads((out / "metrics.json").read_text())
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]


def weights(out: Path) -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = load(out)["policy"]
    return saved


def checkpoint(out: Path) -> bytes:
    path = last_checkpoint(out)
    assert path is not None
    return path.read_bytes()


def load(out: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(checkpoint(out)), weights_only=True)
    return state


def assert_equal_runs(one: Path, other: Path) -> None:
    """The runs are equal bit for bit, including the optimiser's state."""
    assert history(one) == history(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    moments, others = (load(out)["optimizer"]["state"] for out in (one, other))
    assert moments.keys() == others.keys()
    assert all(torch.equal(moments[index][name], others[index][name]) for index in moments for name in moments[index])
