"""Nothing in a received file is executed: a payload in every kind of file that a command reads does not run."""

import base64
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.save_util import json_to_data

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.training.run import train_agent
from ollm_rl.cli import main
from ollm_rl.files.tensors import sealed_tensors, sealed_zip
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from tests.damage import refusal
from tests.payload import Payload
from tests.tiny_models import save_backbone
from tests.training_runs import ONES, naming

SHORT = ("--max_new_tokens", "2", "--limit", "2")
Command = list[object]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, options and a LoRA with checkpoints, problems, a training run with a replay, and two SB3 runs."""
    folder = tmp_path_factory.mktemp("origin")
    torch.manual_seed(0)
    backbone = save_backbone(folder / "plain")
    rows = [{"question": f"{a}+1?", "solution": f"#### {a + 1}", "answer": a + 1} for a in range(4)]
    (folder / "solved.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shared: dict[str, Any] = {"data": f"jsonl:{folder / 'solved.jsonl'}", "device": "cpu"}
    steps: dict[str, Any] = {"max_steps": 3, "batch_size": 2, "save_steps": 1, "logging_steps": 1}
    option_config = OptionConfig(num_options=4, width=8)
    run_sft(SFTConfig(out=folder / "options", backbone=backbone, options=option_config, **shared, **steps))
    run_sft(SFTConfig(out=folder / "lora", backbone=backbone, stage="lora", lora_rank=2, **shared, **steps))
    shared |= {"model": str(folder / "options"), "episodes": 4, "iterations": 2, "max_new_tokens": 2, "num_slots": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OptionModel, "option_tokens", naming(ONES))
        for agent in ("sb3-ppo", "sb3-dqn"):
            train_agent(RLConfig(out=folder / agent, agent=agent, n_steps=2, **shared))  # type: ignore[arg-type]
        train_agent(RLConfig(out=folder / "run", group_size=2, ratio="topr", replay=1, **shared))
    return folder


@pytest.fixture
def received(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, as someone else could have sent it."""
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    return shutil.copytree(origin, tmp_path / "received")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The folder that a payload would make."""
    return tmp_path / "executed"


def resume(folder: Path, name: str) -> Command:
    """The command of a training run again, in another folder if that of the data has moved."""
    run = json.loads((folder / name / "run.json").read_text())["config"]
    flags: Command = ["train", "--out", folder / name]
    for flag in ("agent", "model", "data", "episodes", "iterations", "max_new_tokens", "num_slots", "device"):
        flags += [f"--{flag}", run[flag]]
    if name == "run":
        return [*flags, "--group_size", 2, "--ratio", "topr", "--replay", 1]
    return [*flags, "--n_steps", 2]


def resume_sft(folder: Path, name: str) -> Command:
    run = json.loads((folder / name / "run.json").read_text())["config"]
    flags: Command = ["sft", "--out", folder / name, "--options.num_options", 4, "--options.width", 8]
    if name == "lora":
        flags = ["sft", "--out", folder / name]
    for flag in ("backbone", "data", "device", "max_steps", "batch_size", "save_steps", "logging_steps", "stage"):
        flags += [f"--{flag}", run[flag]]
    return [*flags, "--lora_rank", 2] if name == "lora" else flags


def as_zip(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"policy": Payload(mark), "optimizer": {}, "history": []}, buffer)
    return buffer.getvalue()


FORMS: list[Callable[[Path], bytes]] = [
    as_zip,
    lambda mark: sealed_tensors({"policy": Payload(mark), "optimizer": {}, "history": []}),
    lambda mark: pickle.dumps(Payload(mark)),
]


def test_checkpoints_and_replays_execute_nothing(
    received: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form = FORMS[1]
    run = received / "run"
    (run / "replay" / "000001.pt").write_bytes(form(mark))
    main([*map(str, resume(received, "run"))])
    for path in (*run.glob("**/*.pt"), *run.glob("**/damaged/*")):
        path.write_bytes(form(mark))
    out = received / "page.html"
    for command in (
        resume(received, "run"),
        ["eval", "--model", run, *SHORT],
        ["eval", "--model", run / "best.pt", *SHORT],
        ["search", "--model", run, *SHORT, "--budget_tokens", 2],
        ["explore", "--model", run, "--prompt", "a", "--out", out],
        ["report", run, "--out", out],
    ):
        if command[0] == "report":
            main([*map(str, command)])  # writes a page without an explorer
        else:
            refusal(capsys, *command)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["sb3-ppo", "sb3-dqn"])
def test_models_of_sb3_execute_nothing_and_the_run_resumes(received: Path, mark: Path, name: str) -> None:
    path = received / name / "model.zip"
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    data = json.loads(entries["data"])
    planted = [entry for entry in data.values() if isinstance(entry, dict) and ":serialized:" in entry]
    for entry in planted:
        entry[":serialized:"] = base64.b64encode(pickle.dumps(Payload(mark))).decode()
    assert planted
    entries["data"] = json.dumps(data).encode()
    path.write_bytes(zipped(entries))
    # Two iterations were done; a third shows that the run goes on.
    rows = json.loads((received / name / "metrics.json").read_text())
    (received / name / "metrics.json").write_text(json.dumps(rows[:1]))
    (received / name / "replay_buffer.pkl").write_bytes(pickle.dumps(Payload(mark)))
    assert main([*map(str, resume(received, name))]) == 0
    assert len(json.loads((received / name / "metrics.json").read_text())) == 2
    assert not mark.exists()
    json_to_data(entries["data"].decode())  # this is how SB3 itself reads the file
    assert mark.exists()


def zipped(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return sealed_zip(buffer.getvalue())


@pytest.mark.parametrize("entry", ["policy.pth", "pytorch_variables.pth"])
def test_weights_of_sb3_execute_nothing(
    received: Path, mark: Path, entry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = received / "sb3-ppo" / "model.zip"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    path.write_bytes(zipped({**entries, entry: as_zip(mark)}))
    assert "does not hold the weights of this agent" in refusal(capsys, *resume(received, "sb3-ppo"))
    assert not mark.exists()


@pytest.mark.parametrize("form", FORMS[1:])
def test_replays_of_sb3_execute_nothing(
    received: Path, mark: Path, form: Callable[[Path], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    path = received / "sb3-dqn" / "replay_buffer.pt"
    path.write_bytes(form(mark))
    assert str(path) in refusal(capsys, *resume(received, "sb3-dqn"))
    path.rename(path.with_suffix(".pkl"))  # where older runs kept a pickle
    assert "replay_buffer.pt is missing" in refusal(capsys, *resume(received, "sb3-dqn"))
    assert not mark.exists()


FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "adapter_model.bin"]


@pytest.mark.parametrize("stage", ["options", "lora"])
def test_checkpoints_of_the_supervised_stage_execute_nothing(
    received: Path, mark: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (received / stage / {"options": "option_config.json", "lora": "adapter_config.json"}[stage]).unlink()
    shutil.rmtree(received / stage / "checkpoint-3")
    for checkpoint in (received / stage).glob("checkpoint-*"):
        (checkpoint / "SHA256SUMS").unlink()
        for name in FILES:
            (checkpoint / name).write_bytes(as_zip(mark))
        if stage == "lora":
            (checkpoint / "adapter_model.safetensors").unlink()
    assert "is not loaded" in refusal(capsys, *resume_sft(received, stage))
    assert not mark.exists()


def test_weights_of_plug_ins_loras_and_backbones_execute_nothing(
    received: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, file in (("options", "adapter_model"), ("lora", "adapter_model"), ("plain", "pytorch_model")):
        for path in received.glob(f"{name}/*"):
            if path.suffix == ".safetensors" or path.name == "SHA256SUMS":
                path.unlink()
        (received / name / f"{file}.bin").write_bytes(as_zip(mark))
        refusal(capsys, "eval", "--model", received / name, *SHORT)
    for name in ("options", "plain"):
        for file in ("adapter_model.safetensors", "model.safetensors"):
            (received / name / file).write_bytes(pickle.dumps(Payload(mark)))
        refusal(capsys, "eval", "--model", received / name, *SHORT)
    assert not mark.exists()


def test_code_beside_a_backbone_or_named_by_a_lora_is_not_imported(
    received: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"import os\nos.mkdir({str(mark)!r})\n"
    (received / "plain" / "planted.py").write_text(code)
    for name, entries in (
        ("config.json", {"AutoConfig": "planted.Config", "AutoModelForCausalLM": "planted.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["planted.Tokenizer", "planted.Tokenizer"]}),
    ):
        path = received / "plain" / name
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "auto_map": entries, "model_type": "planted"}))
        if name == "config.json":
            assert "cannot be loaded" in refusal(capsys, "eval", "--model", received / "plain", *SHORT)
            path.write_text(json.dumps(content))
    main(["eval", "--model", str(received / "plain"), *SHORT])
    (received / "megatron").mkdir()
    (received / "megatron" / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(received)
    path = received / "lora" / "adapter_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "megatron_config": {"a": 1}, "megatron_core": "megatron.core"}))
    assert "needs megatron" in refusal(capsys, "eval", "--model", received / "lora", *SHORT)
    assert not mark.exists()


def test_settings_and_texts_execute_nothing(received: Path, mark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = f"__import__('os').mkdir({str(mark)!r})"
    (received / "settings.yaml").write_text(f"backbone: !!python/object/apply:os.mkdir [{mark}]\n")
    refusal(capsys, "sft", "--config", received / "settings.yaml", "--out", received / "new")
    forms = (code, f"\\boxed{{{code}}}", f"The answer is 1+{code}")
    rows = [{"question": code, "answer": text, "completion": other} for text in forms for other in forms]
    (received / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--max_new_tokens", "2", "--data", f"jsonl:{received / 'problems.jsonl'}"]
    main(["eval", "--model", str(received / "options"), *options])
    lines = [json.dumps({"iteration": 0, **row, "correct": True}) for row in rows]
    (received / "run" / "completions" / "000000.jsonl").write_text("\n".join(lines))
    assert main(["audit", str(received / "run")]) == 0
    assert not mark.exists()


def test_stored_hidden_states_execute_nothing(received: Path, mark: Path) -> None:
    cache = received / "cache"
    arguments = [*resume_sft(received, "options"), "--cache", cache]
    arguments[2] = received / "cached"
    assert main([*map(str, arguments)]) == 0
    for path in cache.glob("*/*.safetensors"):
        path.write_bytes(pickle.dumps(Payload(mark)))
    arguments[2] = received / "cached again"
    assert main([*map(str, arguments)]) == 0
    assert not mark.exists()


@pytest.mark.parametrize("form", FORMS)
def test_the_payload_would_run(mark: Path, form: Callable[[Path], bytes]) -> None:
    data = form(mark)
    if data.startswith(b"PK"):
        torch.load(io.BytesIO(data), weights_only=False)
    else:
        pickle.loads(data)
    assert mark.exists()
