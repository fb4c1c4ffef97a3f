"""The end of supervised training: a kill after the last checkpoint, SIGTERM, and the last line of metrics."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ollm_rl.pretrain.sft as sft_module
from ollm_rl.pretrain.sft import run_sft
from tests.faults import Killed
from tests.pretrain.test_sft import config, history
from tests.tiny_models import save_backbone


@pytest.fixture
def source(tmp_path: Path) -> tuple[str, str]:
    """A backbone, and problems for five batches an epoch."""
    rows = [{"question": f"{a}+{b}?", "solution": f"#### {a + b}", "answer": a + b} for a in range(6) for b in range(6)]
    (tmp_path / "solved.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return save_backbone(tmp_path / "backbone"), f"jsonl:{tmp_path / 'solved.jsonl'}"


@pytest.mark.parametrize("stage", ["options", "backbone", "lora"])
def test_a_run_killed_after_its_last_checkpoint_trains_no_step_more(
    tmp_path: Path, source: tuple[str, str], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    name = "model.safetensors" if stage == "backbone" else "adapter_model.safetensors"
    whole = run_sft(config(tmp_path / "whole", *source, stage=stage))
    resumed = config(tmp_path / "resumed", *source, stage=stage)

    def kill(history: list[dict[str, float]]) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sft_module, "describe_whole_run", kill)
        run_sft(resumed)
    assert (resumed.out / "checkpoint-8" / "trainer_state.json").exists()
    run_sft(resumed)
    expected, found = load_file(whole / name), load_file(resumed.out / name)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert history(whole) == history(resumed.out)


def test_a_last_step_between_two_lines_of_metrics_is_logged_and_counted(
    tmp_path: Path, source: tuple[str, str]
) -> None:
    lines = history(run_sft(config(tmp_path / "run", *source, max_steps=5, save_steps=4, logging_steps=4)))
    assert [line["step"] for line in lines] == [4, 5, 5]
    assert lines[-1]["train_loss"] == pytest.approx((4 * lines[0]["loss"] + lines[1]["loss"]) / 5)


@pytest.mark.parametrize("stage", ["options", "backbone", "lora"])
def test_sigterm_ends_a_run_once_a_checkpoint_is_saved(
    tmp_path: Path,
    source: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
) -> None:
    name = "model.safetensors" if stage == "backbone" else "adapter_model.safetensors"
    whole = run_sft(config(tmp_path / "whole", *source, stage=stage))
    stopped = config(tmp_path / "stopped", *source, stage=stage)
    plain = sft_module.StopOnRequest.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:  # between two lines of metrics, and between two checkpoints
            signal.raise_signal(signal.SIGTERM)
        plain(self, args, state, control, **kwargs)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sft_module.StopOnRequest, "on_step_end", on_step_end)
        run_sft(stopped)
    assert stop.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    assert "stopped; step 6 is saved, the same command resumes" in capsys.readouterr().err
    assert [line["step"] for line in history(stopped.out)] == [2, 4, 6] and not (stopped.out / name).exists()
    run_sft(stopped)
    expected, found = load_file(whole / name), load_file(stopped.out / name)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert [line.get("loss") for line in history(whole)] == [line.get("loss") for line in history(stopped.out)]
    assert history(whole)[-1] == history(stopped.out)[-1]
