"""What supervised training shows in TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.processes import rank
from ollm_rl.report.board import Board

AXIS = ("step", "epoch")  # over which the others are drawn


class SFTBoard(TrainerCallback):
    """Writes settings and metrics into the run's folder, where a resumed run continues them.

    Args:
        config: Settings of the run.
    """

    def __init__(self, config: SFTConfig) -> None:
        self.config = config
        self.board: Board | None = None

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the file; one process writes it."""
        if rank():
            return
        self.board = Board(Path(str(args.output_dir)), self.config, ["train/loss"], start=state.global_step + 1)
        for row in state.log_history:
            self.board.known(tagged(row), row["step"])

    def on_log(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the newest line."""
        if self.board is not None:
            row = state.log_history[-1]
            self.board.add(tagged(row), row["step"])

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the file."""
        if self.board is not None:
            self.board.close()


def tagged(row: Mapping[str, float]) -> dict[str, float]:
    """A line of metrics by tag."""
    return {f"train/{name}": value for name, value in row.items() if name not in AXIS}
