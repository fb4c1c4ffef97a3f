"""What the command line says when the supervised stage ends."""

import shlex
from pathlib import Path

from ollm_rl.runs import read_run

NEXT = {
    "options": ["train", "--model", "{}", "--out", "runs/policy"],
    "backbone": ["sft", "--backbone", "{}", "--out", "runs/options"],
    "lora": ["eval", "--model", "{}"],
}


def format_run(folder: Path) -> str:
    """Where a run lies, and the command that comes next."""
    config = read_run(folder, "sft")
    words = ["ollm-rl", *(word.format(folder) for word in NEXT[config["stage"]])]
    if config["data"] != "arith":  # the default of all commands
        words += ["--data", config["data"]]
    return f"written to {folder}; next: {shlex.join(words)}"
