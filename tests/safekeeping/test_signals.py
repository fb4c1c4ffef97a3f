"""Stops from outside say what they mean, at any moment."""

import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from ollm_rl.cli import COMMANDS, main
from ollm_rl.safekeeping.signals import catch_sigterm
from tests.places import ROOT

# Presses Ctrl-C while a module is being imported, in a place that would lose an exception.
PRESSED = """
import os, signal, sys
class Presses:
    def find_spec(self, name, *rest):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(10**6): pass
            except KeyboardInterrupt as error:
                raise ImportError("initialization failed") from error
sys.meta_path.insert(0, Presses())
from ollm_rl.safekeeping.start import main
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["jsonargparse", "torch", "transformers"])
def test_ctrl_c_during_imports_ends_with_one_line(tmp_path: Path, module: str) -> None:
    command = [sys.executable, "-c", PRESSED.format(module=module), "sft", "--out", str(tmp_path / "run")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr == "ollm-rl: stopped before anything was done\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["sft", "--out", "x"], "the same command resumes from the last checkpoint, or starts again if there is none"),
        (["train", "--out", "x", "--model", "y"], "the same command resumes after the last finished iteration"),
        (["eval", "--model", "y"], "with --out the same command resumes after the problems already evaluated; without"),
        (["search", "--model", "y"], "nothing was saved; the same command starts again"),
        (["audit", "x"], "nothing was saved; the same command starts again"),
    ],
)
def test_ctrl_c_says_what_resumes_and_what_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    def stop(*arguments: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("ollm_rl.cli.run", stop)
    assert main(command) == 130
    assert f"ollm-rl: stopped; {message}" in capsys.readouterr().err


def test_every_command_that_has_a_run_folder_resumes() -> None:
    resuming = {name for name, command in COMMANDS.items() if "resume" in command.resumes}
    assert resuming == {"demo", "sft", "train", "sweep", "compare", "eval"}


def test_handlers_are_restored_after_the_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []
    audit = import_module("ollm_rl.agents.evaluation.audit")
    monkeypatch.setattr(audit, "run_audit", lambda config: seen.append(signal.getsignal(signal.SIGINT)))
    monkeypatch.setattr(audit, "format_audit", str)
    monkeypatch.setattr("ollm_rl.agents.evaluation.ending.audit_ending", lambda result, config: "checked")
    assert main(["audit", "x"]) == 0
    assert seen == [before] and signal.getsignal(signal.SIGINT) is before


def test_the_first_sigterm_is_a_request_and_the_second_acts_as_usual() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with catch_sigterm() as requested:
        signal.raise_signal(signal.SIGTERM)
        assert requested.is_set() and signal.getsignal(signal.SIGTERM) is before
