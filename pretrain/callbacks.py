"""What the supervised stage does beside training: its metrics file, and the ends that come from within or outside."""

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from ollm_rl.errors import RunError
from ollm_rl.pretrain.checkpoints import last_checkpoint
from ollm_rl.runs import write_atomic

MUST_BE_FINITE = ("loss", "grad_norm", "train_loss")
# What Trainer adds to its last line for the time since the last start; a resumed run would differ in it.
OF_THIS_START = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


class MetricsFile(TrainerCallback):
    """Writes every logged line to ``metrics.json`` beside the checkpoints.

    A resumed run continues the file, since ``Trainer`` restores its log history. The last line is about the whole run,
    not about the time since its last start.
    """

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the last step too, so that the lines cover all steps."""
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the whole history; it is short."""
        if "train_loss" in state.log_history[-1]:
            if state.global_step < state.max_steps:  # stopped early: the line comes when the run has ended
                return
            _describe_whole_run(state.log_history)
        write_atomic(Path(args.output_dir) / "metrics.json", json.dumps(state.log_history, indent=1))


def _describe_whole_run(history: list[dict[str, float]]) -> None:
    """Make the last line, ``Trainer``'s summary since its start, one of all steps."""
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row]
    starts = [0, *(step for step, _ in losses)]
    total = sum(loss * (step - start) for start, (step, loss) in zip(starts, losses, strict=False))
    last = history[-1]
    last["train_loss"] = total / last["step"]
    for name in OF_THIS_START:
        last.pop(name, None)


class StopOnRequest(TrainerCallback):
    """Ends training with a checkpoint, after the next line of metrics, once an event is set.

    Not at once: a resumed run would then average the steps of that line that it did not see.
    """

    def __init__(self, requested: threading.Event) -> None:
        self.requested = requested

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the event."""
        if self.requested.is_set() and state.global_step % args.logging_steps == 0:
            control.should_save = control.should_training_stop = True


class StopAtNonFinite(TrainerCallback):
    """Ends training, before the next checkpoint, at a loss or gradient that is not finite."""

    def on_log(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the newest line."""
        row = state.log_history[-1]
        refuse_not_finite({name: row[name] for name in MUST_BE_FINITE if name in row}, args, state.global_step)


def refuse_not_finite(values: Mapping[str, float], args: TrainingArguments, step: int) -> None:
    """End training if a value is not finite.

    Raises:
        RunError: It names the value, the step and the last checkpoint.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            saved = last_checkpoint(Path(str(args.output_dir)))
            kept = f"the last good checkpoint is {saved}" if saved else "no checkpoint was saved yet"
            raise RunError(
                f"{name} is not finite in step {step}; lower learning_rate={args.learning_rate:g}, in another out "
                f"folder; {kept}"
            )
