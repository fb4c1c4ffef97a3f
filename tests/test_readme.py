"""The commands and the code in README run as shown there, only with smaller numbers."""

import re
import shlex
from pathlib import Path

import pytest

from ollm_rl.cli import main
from tests.places import ROOT

TEXT = (ROOT / "README.md").read_text()
SMALLER = {
    "sft": "--max_steps 4 --batch_size 8 --limit 64",
    "train": "--iterations 1 --episodes 16 --num_slots 16 --max_new_tokens 12",
    "eval": "--limit 8 --max_new_tokens 12",
    "report": "",
}


def test_the_commands_and_the_snippet_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("experiments").symlink_to(ROOT / "experiments")
    commands = re.findall(r"^ollm-rl (.*)$", TEXT, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["sft", "train", "train", "eval", "report"]
    for command in commands:
        words = shlex.split(command)
        assert main([*words, *SMALLER[words[0]].split()]) == 0
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(snippet, {})


def test_every_file_and_folder_it_names_exists() -> None:
    # Links, and names of folders and files in the tree.
    names = re.findall(r"\]\(([^)#:]+)\)", TEXT) + re.findall(r"^\| `([^`]+)` \|", TEXT, re.MULTILINE)
    assert len(names) > 8
    assert not [name for name in names if not (ROOT / name).exists()]
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", TEXT, re.MULTILINE):
        assert f"\n{target}:" in makefile
