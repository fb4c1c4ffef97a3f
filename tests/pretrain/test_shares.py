"""Several processes train as one: the same losses, metrics, files and weights, whatever the batch leaves for each."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ollm_rl.cli import main
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import CountedStates
from ollm_rl.pretrain.callbacks import StopOnRequest
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from ollm_rl.pretrain.shares import Share, first_positions
from tests.processes import run_processes
from tests.tiny_models import save_backbone

STOPPED = 128 + signal.SIGTERM


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A backbone and nine problems: of two batches of eight, the second leaves the second process nothing."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    save_backbone(tmp_path / "backbone")
    rows = [{"question": f"{a}+1?", "solution": f"{'so ' * (a % 4)}#### {a + 1}", "answer": a + 1} for a in range(9)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def settings(folder: Path, name: str, stage: str) -> dict[str, Any]:
    values: dict[str, Any] = {"out": folder / name, "backbone": str(folder / "backbone"), "stage": stage}
    values |= {"data": f"jsonl:{folder / 'data.jsonl'}", "device": "cpu", "max_steps": 4, "batch_size": 8}
    values |= {"save_steps": 2, "logging_steps": 1}
    if stage == "options":
        values["cache"] = folder / f"{name}-cache"
    elif stage == "backbone":
        values["gradient_accumulation_steps"] = 2
    return values


def train_stopped(config: SFTConfig) -> None:
    """Train until only the second process is asked to stop, in its first step."""
    plain = StopOnRequest.on_step_end

    def on_step_end(self: StopOnRequest, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        plain(self, args, state, control, **kwargs)

    StopOnRequest.on_step_end = on_step_end  # type: ignore[method-assign]
    run_sft(config)


def train(config: SFTConfig) -> None:
    run_sft(config)


def files(folder: Path) -> set[str]:
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path.as_posix() for path in found if not path.name.startswith("events.out")}


@pytest.mark.parametrize("stage", ["options", "backbone", "lora"])
def test_two_processes_train_as_one(folder: Path, stage: str) -> None:
    one, two = (settings(folder, name, stage) for name in ("one", "two"))
    if stage == "options":
        options = OptionConfig(num_options=4, width=8)
        run_sft(SFTConfig(**one, options=options))
        config = SFTConfig(**two, options=options)
        assert run_processes(folder / "said", train_stopped, config) == [STOPPED, STOPPED]
        assert (folder / "two" / "checkpoint-1").exists(), "both stop at the next line of metrics"
        assert run_processes(folder / "said", train, config) == [0, 0]
        (shard,) = (folder / "one-cache").rglob("shard*")
        assert (folder / "two-cache" / shard.relative_to(folder / "one-cache")).read_bytes() == shard.read_bytes()
    else:
        run_sft(SFTConfig(**one))
        flags = [word for name, value in two.items() for word in (f"--{name}", str(value))]
        assert run_processes(folder / "said", main, ["sft", *flags]) == [0, 0]
        assert (folder / "said" / "0.out").read_text().count("written to") == 1
    assert (folder / "said" / "1.out").read_text() == ""
    lines, others = (json.loads((folder / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert [line["step"] for line in others] == [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    for line, other in zip(lines, others, strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() - {"total_flos"}:  # which count padding
            assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-6, nan_ok=True), name
    weights = "model.safetensors" if stage == "backbone" else "adapter_model.safetensors"
    expected, found = (load_file(folder / name / weights) for name in ("one", "two"))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)
    noise = {f"checkpoint-{step}/rng_state.pth" for step in (2, 4)}
    by_process = {name.replace(".pth", f"_{rank}.pth") for name in noise for rank in (0, 1)}
    assert files(folder / "two") == files(folder / "one") - noise | by_process


def test_a_share_is_every_second_solution_and_one_that_does_not_count_if_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    share: Any = Share(lambda examples: examples)  # type: ignore[arg-type, return-value]
    examples = [{"input_ids": [n, n], "labels": [-100, n]} for n in range(5)]
    assert [each["input_ids"][0] for each in share(examples)] == [1, 3]
    assert share(examples[:1]) == [{"input_ids": [0, 0], "labels": [-100, -100]}]
    (stored,) = share([{"hidden_states": torch.ones(3, 2), "targets": torch.ones(3)}])
    assert stored["hidden_states"].shape == (0, 2) and stored["targets"].shape == (0,)


def test_the_first_positions_of_a_batch_are_put_together_in_the_order_of_its_solutions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def states(*solutions: list[int]) -> CountedStates:
        targets = torch.tensor([target for solution in solutions for target in solution])
        offsets = torch.cat([torch.arange(len(solution)) for solution in solutions])
        return CountedStates(targets[:, None].float(), targets, offsets)

    shares = [states([1, 2, 3], [6], [9, 10]), states([4, 5], [7, 8])]
    assert first_positions(shares[0], 4).targets.tolist() == [1, 2, 3, 6], "in one process"
    sent: list[Any] = []

    def gathered(mine: Any) -> list[Any]:
        sent.append(mine)
        return [mine]

    monkeypatch.setattr("ollm_rl.pretrain.shares.world_size", lambda: 2)
    monkeypatch.setattr("ollm_rl.pretrain.shares.gathered", gathered)
    for share in shares:
        first_positions(share, 8)
    monkeypatch.setattr("ollm_rl.pretrain.shares.gathered", lambda mine: sent)
    for share in shares:
        whole = first_positions(share, 8)
        assert whole.targets.tolist() == whole.hidden_states[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
        assert whole.offsets.tolist() == [0, 1, 2, 0, 1, 0, 0, 1]
