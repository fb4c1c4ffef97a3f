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


def test_a_checkpoint_that_is_killed_before_any_file_operation_ends_as_an_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    backbone = save_backbone(tmp_path / "backbone")
    loaded = load_backbone(backbone)
    monkeypatch.setattr(sft_module, "load_backbone", lambda *arguments, **settings: loaded)  # frozen: it never changes
    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr("gc.collect", lambda *arguments: 0)  # Trainer's, half a second each
    rows = [{"question": f"{a}+1?", "solution": f"#### {a + 1}", "answer": a + 1} for a in range(4)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def config(name: str) -> SFTConfig:
        return SFTConfig(
            out=tmp_path / name,
            backbone=backbone,
            data=f"jsonl:{tmp_path / 'data.jsonl'}",
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

    def stop(self: sft_module.MetricsFile, args: object, state: object, *rest: object, **more: object) -> None:
        if getattr(state, "global_step", 0) == 3:
            raise Killed

    undisturbed = run_sft(config("undisturbed"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sft_module.MetricsFile, "on_step_end", stop)
        run_sft(config("begun"))
    assert (tmp_path / "begun" / "checkpoint-2" / "trainer_state.json").exists()
    operation, killed = 0, True
    while killed:
        operation += 1
        run = config(str(operation))
        shutil.copytree(tmp_path / "begun", run.out)
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
