"""What supervised training shows while it runs."""

from types import SimpleNamespace
from typing import Any

from ollm_rl.pretrain.callbacks import ShortLines


def test_a_logging_step_is_one_short_line_and_the_summary_none() -> None:
    lines: list[str] = []
    shown: Any = ShortLines()
    shown.training_bar = SimpleNamespace(write=lines.append)
    state = SimpleNamespace(global_step=10, max_steps=300)
    shown.on_log(None, state, None, {"loss": 0.74333, "grad_norm": 0.1, "kl": 0.0148512, "learning_rate": 6.227e-4})
    shown.on_log(None, state, None, {"train_loss": 0.7, "train_runtime": 17.0})
    assert lines == ["step 10 of 300: loss 0.743, kl 0.0149, learning_rate 0.000623"]
