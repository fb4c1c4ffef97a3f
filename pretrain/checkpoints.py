"""Checkpoints of the supervised stage: their checksums, and which of them is the newest intact one."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from ollm_rl.files.checksums import SUMS_FILE, check_folder, folder_sums
from ollm_rl.files.intact import intact
from ollm_rl.processes import rank
from ollm_rl.runs import write_atomic

_NAME = re.compile(r"checkpoint-\d+$")


class Checksums(TrainerCallback):
    """Writes the checksums of a checkpoint's files beside them, once the checkpoint is complete."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Write them for the newest checkpoint."""
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if rank() == 0:
            write_atomic(checkpoint / SUMS_FILE, folder_sums(checkpoint))


def last_checkpoint(out: Path) -> str | None:
    """The newest intact checkpoint in a folder. Damaged ones are set aside, those that a kill cut short are removed.

    Raises:
        DamagedError: If all are damaged.
    """
    found = {int(path.name[len("checkpoint-") :]): path for path in out.glob("checkpoint-*") if _NAME.match(path.name)}
    for path in list(found.values()):
        if not (path / SUMS_FILE).exists() and not _was_completed(path):
            shutil.rmtree(path)
    newest_first = [path for _, path in sorted(found.items(), reverse=True) if path.exists()]
    return next(map(str, intact(out, newest_first, check_folder)), None)


def _was_completed(checkpoint: Path) -> bool:
    """Whether a checkpoint has the file that Trainer writes last; only SUMS_FILE comes after it."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        return True
    except (FileNotFoundError, ValueError):
        return False
