"""Damage to files, and what a command says about it."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ollm_rl.cli import main


def flip(path: Path, seed: int = 0) -> None:
    """Flip a bit in each of four bytes."""
    data = bytearray(path.read_bytes())
    chance = random.Random(seed)
    for place in chance.sample(range(len(data)), 4):
        data[place] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(500))


DAMAGES: list[Callable[[Path], None]] = [flip, truncate, empty, garbage]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command with a mistake prints."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ollm-rl: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("ollm-rl: ")
