"""The checkpoints of the supervised stage, which ``transformers.Trainer`` writes."""

import json
import shutil
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint


def last_checkpoint(out: Path) -> str | None:
    """The newest complete checkpoint in a folder. Removes one that a kill left half-written."""
    while (checkpoint := get_last_checkpoint(str(out))) is not None:
        try:
            json.loads((Path(checkpoint) / "trainer_state.json").read_text())  # Trainer writes this file last
            return checkpoint
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(checkpoint)
    return None
