"""What the command line says when supervised training or its evaluation ends."""

from pathlib import Path
from typing import Any

from ollm_rl.files.records import read_rows
from ollm_rl.pretrain.config import SFTConfig, TeacherForcedConfig
from ollm_rl.report.ending import ending, opening, problems_of
from ollm_rl.runs import METRICS_FILE

NEXT = {
    "options": ["train", "--model", "{}", "--out", "runs/policy"],
    "backbone": ["sft", "--backbone", "{}", "--out", "runs/options"],
    "lora": ["eval", "--model", "{}"],
}


def sft_ending(folder: Path, config: SFTConfig) -> str:
    """The last loss of a run, where the run lies, and the command that comes next."""
    rows = read_rows(folder / METRICS_FILE, {})
    last = next(row for row in reversed(rows) if "loss" in row)
    words = ["ollm-rl", *(word.format(folder) for word in NEXT[config.stage]), *problems_of(config.data)]
    return ending(f"loss {last['loss']:.3f} after {last['step']:,} steps", folder, words)


def teacher_forced_ending(result: dict[str, Any], config: TeacherForcedConfig) -> str:
    """By how much the oracle over the options beats the backbone, where that lies, and the command that comes next."""
    gain, *_ = result["oracle_gain"]
    following = ["ollm-rl", "train", "--model", config.model, "--out", "runs/policy", *problems_of(config.data)]
    return ending(
        f"the oracle over the options names {100 * gain:.1f}% more of the tokens than the backbone",
        config.out,
        following if config.out is None else opening(config.out.with_suffix(".html")),
    )
