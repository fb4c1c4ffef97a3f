"""What supervised training shows while it runs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.trainer_callback import TrainerState

from ollm_rl.pretrain.callbacks import ShortLines
from ollm_rl.pretrain.sft import MetricsFile


def test_a_logging_step_is_one_short_line_and_the_summary_none() -> None:
    lines: list[str] = []
    shown: Any = ShortLines()
    shown.training_bar = SimpleNamespace(write=lines.append)
    state = SimpleNamespace(global_step=10, max_steps=300)
    shown.on_log(None, state, None, {"loss": 0.74333, "grad_norm": 0.1, "kl": 0.0148512, "learning_rate": 6.227e-4})
    shown.on_log(None, state, None, {"train_loss": 0.7, "train_runtime": 17.0})
    assert lines == ["step 10 of 300: loss 0.743, kl 0.0149, learning_rate 0.000623"]


def test_only_the_first_process_writes_though_the_state_of_a_checkpoint_says_that_each_is_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    state = TrainerState(global_step=2, max_steps=4, log_history=[{"loss": 0.5, "step": 2}])
    assert state.is_world_process_zero, "as in the first process, which saves it"
    arguments: Any = SimpleNamespace(output_dir=str(tmp_path))
    for rank, files in ((1, []), (0, ["metrics.json"])):
        monkeypatch.setenv("RANK", str(rank))
        MetricsFile().on_log(arguments, state, None)
        assert [path.name for path in tmp_path.iterdir()] == files
