"""Arguments with which a benchmark would measure nothing, or end in a traceback, are refused before it begins."""

import importlib
from pathlib import Path

import pytest

from ollm_rl.experiments.script import start
from tests.places import ROOT


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("verify", "data --only cases", "--only cases needs --cases FILE"),
        ("detectors", "data --only cases", "--only cases needs --cases FILE"),
        ("update", f"--against {ROOT} --episodes 36", "--episodes 36 is no multiple of 8"),
        ("gpus", "--cases sft-lora --warm-up-steps 0", "argument --warm-up-steps: 0 is less than 1"),
        ("kills", "--out .", "--out . exists already; give a new folder"),
        ("profile_decode", "--context 0", "argument --context: 0 is less than 1"),
        (
            "decode",
            "--device cpu --slots 2 --waves 1 --new-tokens 2 2 --only engine vllm",
            "--only names 'vllm'; give some of 'engine'",
        ),
    ],
)
def test_arguments_that_cannot_be_measured_are_refused(
    name: str,
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = importlib.import_module(f"ollm_rl.experiments.bench.{name}")
    if name == "decode":
        monkeypatch.setattr(bench, "bandwidth", lambda device: 1e9)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name, *words.split()])
    with pytest.raises(SystemExit, match="2"):
        start(bench.main)
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
