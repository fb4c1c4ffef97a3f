"""Supervised training that is killed before any of its file operations."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ollm_rl.pretrain.sft as sft_module
from ollm_rl.backbones.loading import load_backbone
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from ollm_rl.safekeeping.outputs import is_temporary
from tests.faults import Killed, killed_before, was_killed
from tests.tiny_models import save_backbone


def config(folder: Path, name: str) -> SFTConfig:
    """A run of three steps, each with a line of metrics and a checkpoint."""
    return SFTConfig(
        out=folder / name,
        backbone=str(folder / "backbone"),
        data=f"jsonl:{folder / 'data.jsonl'}",
        options=OptionConfig(num_options=4, width=8),
        max_steps=3,
        batch_size=2,
        save_steps=1,
        logging_steps=1,
        device="cpu",
    )


def metrics(out: Path) -> list[dict[str, float]]:
    lines: list[dict[str, float]] = json.loads((out / "metrics.json").read_text())
    return lines


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A backbone and problems; what takes time and has nothing to do with files is left out of the runs."""
    loaded = load_backbone(save_backbone(tmp_path / "backbone"))
    monkeypatch.setattr(sft_module, "load_backbone", lambda *arguments, **settings: loaded)  # frozen: it never changes
    monkeypatch.setattr("os.fsync", lambda handle: None)
    rows = [{"question": f"{a}+1?", "solution": f"#### {a + 1}", "answer": a + 1} for a in range(4)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_a_checkpoint_that_is_killed_before_any_file_operation_ends_as_an_undisturbed_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: object, args: object, state: object, *rest: object, **more: object) -> None:
        if getattr(state, "global_step", 0) == 3:
            raise Killed

    undisturbed, begun = run_sft(config(folder, "undisturbed")), config(folder, "begun")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sft_module.MetricsFile, "on_step_end", stop)
        run_sft(begun)
    assert (begun.out / "checkpoint-2" / "trainer_state.json").exists()
    operation, killed = 0, True
    while killed:
        operation += 1
        run = config(folder, str(operation))
        shutil.copytree(begun.out, run.out)
        with killed_before(operation, run.out, monkeypatch):
            run_sft(run)
        killed = was_killed()
        run_sft(run)
        expected, found = (load_file(out / "adapter_model.safetensors") for out in (undisturbed, run.out))
        assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
        assert metrics(run.out) == metrics(undisturbed)
        assert not [path for path in run.out.rglob(".*") if is_temporary(path)]
        shutil.rmtree(run.out)
    assert operation > 30
    OptionModel.from_pretrained(undisturbed)
