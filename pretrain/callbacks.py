"""Callbacks of supervised training: what it shows, its last line of metrics, and when it stops early."""

import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainingArguments

from ollm_rl.errors import RunError
from ollm_rl.pretrain.board import tagged
from ollm_rl.pretrain.checkpoints import last_checkpoint
from ollm_rl.processes import from_first, gathered
from ollm_rl.services.trackers import Trackers

# What Trainer's last line says of the time since the last start only; a resumed run would differ in it.
OF_THIS_START = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
# What a line on the terminal says of a step; metrics.json and TensorBoard have the rest.
SHOWN = ("loss", "cross_entropy", "kl", "policy_loss", "distinct_tokens", "mode_coverage_live", "learning_rate")
MUST_BE_FINITE = ("loss", "grad_norm", "train_loss")


class ShortLines(ProgressCallback):
    """Trainer's progress bar, with one line of the numbers in ``SHOWN`` per logging step."""

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Write the line; the summary at the end has no ``loss`` and is left to the files."""
        if self.training_bar is not None and logs and "loss" in logs:
            numbers = ", ".join(f"{name} {logs[name]:.3g}" for name in SHOWN if name in logs)
            self.training_bar.write(f"step {state.global_step} of {state.max_steps}: {numbers}")


class Reported(TrainerCallback):
    """Sends every line of metrics to the services, under the names that it has in TensorBoard."""

    def __init__(self, trackers: Trackers) -> None:
        self.trackers = trackers

    def on_log(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Send the newest line, as `MetricsFile` left it."""
        self.trackers.log(tagged(state.log_history[-1]), state.global_step)


def describe_whole_run(history: list[dict[str, float]]) -> None:
    """Make the last line, ``Trainer``'s summary since its last start, one of all steps.

    Args:
        history: All lines. Those with a ``loss``, the mean since the one before, cover all steps.
    """
    total, start = 0.0, 0.0
    for row in history:
        if "loss" in row:
            total += row["loss"] * (row["step"] - start)
            start = row["step"]
    last = history[-1]
    last["train_loss"] = total / last["step"]
    for name in OF_THIS_START:
        last.pop(name, None)


class StopOnRequest(TrainerCallback):
    """Ends training with a checkpoint, after the next line of metrics, once an event is set.

    Not at once: the next line is the mean of all steps since the last one, and a resumed run would not know those.
    """

    def __init__(self, requested: threading.Event) -> None:
        self.requested = requested

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the event."""
        # A signal reaches the processes at different moments, and all have to stop at the same step.
        if state.global_step % args.logging_steps == 0 and any(gathered(self.requested.is_set())):
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
    broken = next((name for name, value in values.items() if not math.isfinite(value)), None)
    if broken is None:
        return

    def end() -> None:
        saved = last_checkpoint(Path(str(args.output_dir)))
        kept = f"the last good checkpoint is {saved}" if saved else "no checkpoint was saved yet"
        raise RunError(
            f"{broken} is not finite in step {step}; lower learning_rate={args.learning_rate:g}, in another out "
            f"folder; {kept}"
        )

    from_first(end)
