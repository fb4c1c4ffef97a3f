"""Hundreds of wrong inputs of the command line: each gives one line and exit code 2, and changes no file."""

import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from ollm_rl.cli import COMMANDS, main

HERE = Path(__file__).parent
LONGEST = 700  # characters of a line
CPU = "--device cpu"
PROBLEMS = "--data jsonl:data.jsonl"
# Flags with which each command works.
WORKING = {
    "bare": "",
    "sft": f"sft --out new --backbone backbone --max_steps 1 --options.width 4 {PROBLEMS} {CPU}",
    "train": "train --out new --model options --iterations 1 --episodes 8 --group_size 4 --max_new_tokens 3 "
    f"--num_slots 4 {PROBLEMS} {CPU}",
    "eval": f"eval --model options --max_new_tokens 3 {PROBLEMS} {CPU}",
    "teacher-forced": f"teacher-forced --model options {PROBLEMS} {CPU}",
    "search": f"search --model options --max_new_tokens 3 --budget_tokens 6 {PROBLEMS} {CPU}",
    "explore": f"explore --model options --prompt Hi? --max_new_tokens 3 --out new.html {CPU}",
    "report": f"report --out new.html {CPU} run",
    "audit": "audit run",
    "demo": "demo --out new",
    "sweep": "sweep --out new --config sweep.yaml",
    "compare": "compare --out new --config compare.yaml",
}


class Case(NamedTuple):
    """A wrong input, and the parts of the line that it must give."""

    command: str
    flags: str
    parts: list[str]


def read_cases() -> list[Case]:
    cases = []
    for name in ("settings.txt", "files.txt"):
        for line in (HERE / name).read_text().splitlines():
            if line and not line.startswith("#"):
                given, parts = line.split(" => ")
                command, _, flags = given.partition(":")
                cases.append(Case(command, flags.strip(), parts.split(" | ")))
    return cases


CASES = read_cases()


def files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of the last change of every file."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.command} {case.flags}")
def test_a_wrong_input_gives_one_line_and_changes_nothing(
    case: Case, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(world)
    # A command's own positional arguments replace those that work.
    working = WORKING[case.command]
    if case.command in ("report", "audit") and not case.flags.startswith("--"):
        working = working.removesuffix(" run")
    assert main([*shlex.split(working), *shlex.split(case.flags)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ollm-rl: ")]
    assert len(lines) == 1 and len(lines[0]) <= LONGEST
    assert [part for part in case.parts if part not in lines[0]] == [], lines[0]
    assert files_of(world) == before


@pytest.mark.parametrize("command", [command for command in WORKING if command in ("eval", "search", "audit")])
def test_without_the_mistake_the_command_works(command: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(WORKING[command])) == 0


def test_there_are_hundreds_of_inputs_for_all_commands() -> None:
    assert len({(case.command, case.flags) for case in CASES}) == len(CASES) >= 300
    assert {case.command for case in CASES} == {"bare", *COMMANDS}
