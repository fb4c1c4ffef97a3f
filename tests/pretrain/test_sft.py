"""The supervised stage: what counts in the loss, what is logged, and runs that resume after a kill."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ollm_rl.pretrain.hidden_cache as hidden_cache
import ollm_rl.pretrain.sft as sft_module
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.agents.training.trainer import train
from ollm_rl.backbones.loading import load_backbone
from ollm_rl.cli import main
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import last_checkpoint, run_sft
from ollm_rl.problems.problem import Problem
from tests.processes import run_process
from tests.tiny_models import EOS, save_backbone

TERMS = {
    *("cross_entropy", "kl", "kl_weight", "policy_loss", "option_usage", "distinct_tokens", "live_share"),
    *("mutual_information", "oracle_token_accuracy", "mode_coverage_live", "mode_coverage_first", "whole_coverage"),
}


def problem(question: str, solution: str, answer: str) -> Problem:
    return Problem(id=question, question=question, solution=solution, answer=answer, language="en")


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    return save_backbone(tmp_path / "backbone")


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "solved.jsonl"
    rows = [{"question": f"{a}+{b}?", "solution": f"#### {a + b}", "answer": a + b} for a in range(6) for b in range(6)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{path}"


def config(out: Path, backbone: str, data: str, **changes: Any) -> SFTConfig:
    """A run that takes seconds, with checkpoints after steps 4 and 8."""
    settings: dict[str, Any] = {
        "out": out,
        "backbone": backbone,
        "data": data,
        "max_steps": 8,
        "batch_size": 8,
        "save_steps": 4,
        "logging_steps": 2,
        "device": "cpu",
    }
    if changes.get("stage", "options") == "options":
        settings["options"] = OptionConfig(num_options=4, width=8)
    return SFTConfig(**settings | changes)


def history(out: Path) -> list[dict[str, float]]:
    lines: list[dict[str, float]] = json.loads((out / "metrics.json").read_text())
    return lines


def test_a_run_leaves_plug_in_tokenizer_origin_metrics_and_tensorboard(
    tmp_path: Path, backbone: str, data: str
) -> None:
    out = run_sft(config(tmp_path / "run", backbone, data))
    model = OptionModel.from_pretrained(out)
    assert model.option_config.num_options == 4 and model.width == 8
    assert json.loads((out / "run.json").read_text())["config"]["backbone"] == backbone
    lines = [line for line in history(out) if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert all(line.keys() >= TERMS for line in lines)
    for line in lines:
        expected = line["cross_entropy"] + line["policy_loss"]
        # The weight moves after every step by at most 5 %, so it brackets the KL term.
        assert 0.9 * line["kl_weight"] * line["kl"] < line["loss"] - expected < 1.1 * line["kl_weight"] * line["kl"]
    (folder,) = {path.parent for path in out.rglob("events*")}
    written = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in written.Scalars("train/distinct_tokens")] == [2, 4, 6, 8]
    assert written.Scalars("train/kl")[1].value == pytest.approx(lines[1]["kl"])
    tags = written.Tags()["scalars"]
    assert {"train/loss", "train/grad_norm", "train/learning_rate"} <= set(tags)
    assert not [tag for tag in tags if len({point.value for point in written.Scalars(tag)}) == 1]
    assert "_hparams_/session_start_info" in written.PluginTagToContent("hparams")


def test_the_loss_falls(tmp_path: Path, backbone: str, data: str) -> None:
    out = run_sft(
        config(tmp_path / "run", backbone, data, max_steps=60, save_steps=60, logging_steps=10, learning_rate=1e-2)
    )
    entropies = [line["cross_entropy"] for line in history(out) if "loss" in line]
    assert entropies[-1] < 0.7 * entropies[0]


class Killed(BaseException):
    """Stops a run like a kill; nothing catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Kill the next run when it logs this step, after the files that belong to the log are written."""
    plain = sft_module.MetricsFile.on_log

    def on_log(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        plain(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise Killed

    monkeypatch.setattr(sft_module.MetricsFile, "on_log", on_log)


@pytest.mark.parametrize("stage", ["options", "backbone", "lora"])
@pytest.mark.parametrize("step", [2, 6, 8])  # before the first checkpoint, between two, at the end
def test_a_killed_run_resumes_and_ends_as_if_never_killed(
    tmp_path: Path, backbone: str, data: str, monkeypatch: pytest.MonkeyPatch, stage: str, step: int
) -> None:
    name = "model.safetensors" if stage == "backbone" else "adapter_model.safetensors"
    whole = run_sft(config(tmp_path / "whole", backbone, data, stage=stage))
    resumed = config(tmp_path / "resumed", backbone, data, stage=stage)
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            run_sft(resumed)
    assert not (resumed.out / name).exists()
    run_sft(resumed)
    expected, found = load_file(whole / name), load_file(resumed.out / name)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    for one, other in zip(history(whole), history(resumed.out), strict=True):
        assert one.get("loss") == other.get("loss") and one["step"] == other["step"]
    assert history(whole)[-1] == history(resumed.out)[-1]
    assert history(whole)[-1]["train_loss"] == pytest.approx(sum(line.get("loss", 0) for line in history(whole)) / 4)


def test_a_checkpoint_that_a_kill_left_half_written_is_never_used(tmp_path: Path) -> None:
    for step, state in ((3, '{"global_step": 3}'), (6, '{"global_st')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-8").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_a_finished_run_is_left_as_it_is(
    tmp_path: Path, backbone: str, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path / "run", backbone, data)
    before = (run_sft(settings) / "adapter_model.safetensors").stat().st_mtime_ns
    run_sft(settings)
    assert (settings.out / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert "is finished already" in capsys.readouterr().out


def test_the_backbone_stage_trains_all_weights_and_leaves_a_backbone(tmp_path: Path, backbone: str, data: str) -> None:
    out = run_sft(config(tmp_path / "run", backbone, data, stage="backbone", max_steps=30))
    before, _ = load_backbone(backbone)
    after, tokenizer = load_backbone(str(out))
    moved = {name: not torch.equal(weight, after.state_dict()[name]) for name, weight in before.state_dict().items()}
    assert all(moved.values()) and tokenizer.eos_token_id == EOS
    losses = [line["loss"] for line in history(out) if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("stage", ["backbone", "lora"])
def test_a_step_in_passes_is_the_same_step(tmp_path: Path, backbone: str, data: str, stage: str) -> None:
    file = "adapter_model.safetensors" if stage == "lora" else "model.safetensors"
    whole, parts = (
        load_file(run_sft(config(tmp_path / f"{n}", backbone, data, stage=stage, gradient_accumulation_steps=n)) / file)
        for n in (1, 4)
    )
    assert whole.keys() == parts.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-3, atol=1e-4)


def test_the_lora_stage_trains_only_a_lora_which_peft_reads_and_eval_decodes(
    tmp_path: Path, backbone: str, data: str
) -> None:
    out = run_sft(config(tmp_path / "run", backbone, data, stage="lora", lora_rank=4, max_steps=40, learning_rate=1e-2))
    losses = [line["loss"] for line in history(out) if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    plain, _ = load_backbone(backbone)
    lora = PeftModel.from_pretrained(load_backbone(backbone)[0], str(out)).eval()
    assert lora.peft_config["default"].r == 4
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected = lora(ids).logits
        with lora.disable_adapter():
            assert torch.equal(lora(ids).logits, plain(ids).logits)
    policy, tokenizer = load_policy(str(out))
    assert isinstance(policy, TokenPolicy) and tokenizer.eos_token_id == EOS
    with torch.no_grad():
        torch.testing.assert_close(policy.backbone(ids).logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="run' holds a LoRA; give a backbone or an option plug-in"):
        train(RLConfig(out=tmp_path / "rl", model=str(out), action_space="tokens", data=data))
    with pytest.raises(FileNotFoundError, match="run' holds a LoRA; give an option plug-in"):
        train(RLConfig(out=tmp_path / "rl", model=str(out), data=data))


@pytest.mark.parametrize("estimator", ["exact", "gumbel"])
def test_stored_hidden_states_give_the_losses_of_the_stream_within_bfloat16(
    tmp_path: Path, backbone: str, data: str, estimator: str
) -> None:
    options = OptionConfig(num_options=4, width=8, estimator=estimator)  # type: ignore[arg-type]
    streamed = run_sft(config(tmp_path / "stream", backbone, data, options=options))
    cached = run_sft(config(tmp_path / "cached", backbone, data, options=options, cache=tmp_path / "cache"))
    lines = zip(history(streamed), history(cached), strict=True)
    pairs = [(one["loss"], other["loss"]) for one, other in lines if "loss" in one]
    assert len(pairs) == 4
    for one, other in pairs:
        assert one == pytest.approx(other, rel=2e-2)
    assert any(one != other for one, other in pairs), "bfloat16 differs from float32 somewhere"


def test_the_frozen_backbone_is_run_once_for_all_epochs_and_runs(
    tmp_path: Path, backbone: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    plain = OptionModel.hidden_states

    def counting(self: OptionModel, input_ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append(len(input_ids))
        return plain(self, input_ids, *rest)

    monkeypatch.setattr(OptionModel, "hidden_states", counting)
    run_sft(config(tmp_path / "first", backbone, data, cache=tmp_path / "cache"))  # 8 steps of 8: two epochs
    assert sum(passes) == 36
    run_sft(config(tmp_path / "second", backbone, data, cache=tmp_path / "cache", seed=1))
    assert sum(passes) == 36


def test_questions_of_the_evaluation_are_left_out_and_counted(
    tmp_path: Path, backbone: str, data: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("\n".join(json.dumps({"question": q, "answer": 1}) for q in ("1+2", "3+3?", "9+9?")))
    seen: list[int] = []
    plain = sft_module.encode_examples

    def noting(problems: list[Problem], *arguments: Any, **settings: Any) -> Any:
        assert not {"1+2?", "3+3?"} & {problem.question for problem in problems}
        seen.append(len(problems))
        return plain(problems, *arguments, **settings)

    monkeypatch.setattr(sft_module, "encode_examples", noting)
    run_sft(config(tmp_path / "run", backbone, data, held_out=f"jsonl:{held_out}"))
    assert seen == [34]
    assert f"2 of 36 problems are left out: jsonl:{held_out} has their questions" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has all questions of .*; give other problems"):
        run_sft(config(tmp_path / "other", backbone, data, held_out=data))


def test_problems_without_solutions_are_refused(tmp_path: Path, backbone: str) -> None:
    path = tmp_path / "bare.jsonl"
    path.write_text('{"question": "1+1?", "answer": 2}')
    with pytest.raises(ValueError, match="holds no worked solutions to train on; give problems with solutions"):
        run_sft(config(tmp_path / "run", backbone, f"jsonl:{path}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"batch_size": -4}, "batch_size=-4 must be at least 1"),
        ({"save_steps": 25, "logging_steps": 10}, "save_steps=25 is no multiple of logging_steps=10; change one"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be more than 0"),
        ({"lora_rank": 0}, "lora_rank=0 must be at least 1"),
        ({"stage": "lora", "cache": Path("kept")}, "cache=kept is not used in stage lora; leave it out"),
        ({"stage": "lora", "gradient_accumulation_steps": 3}, "batch_size=8 is no multiple of 3 passes; change one"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2 is not used in stage options"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is not a finite number"),
    ],
)
def test_settings_out_of_range_are_refused_by_name_and_value(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, "tiny-arith", "arith", **changes)


def killed_run(where: str, arguments: list[str]) -> int:
    """The command ``ollm-rl``, in a process that dies where states are stored or in the sixth step."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def on_log(self: Any, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 6:
            die()

    patch = pytest.MonkeyPatch()
    if where == "cache":
        patch.setattr(hidden_cache, "_compute", die)
    elif where == "training":
        patch.setattr(sft_module.MetricsFile, "on_log", on_log)
    return main(arguments)


def test_kill_9_while_states_are_stored_and_while_training_changes_nothing_in_the_end(
    tmp_path: Path, backbone: str, data: str
) -> None:
    def command(where: str, name: str) -> int | None:
        arguments = ["sft", "--backbone", backbone, "--data", data, "--device", "cpu", "--options.width", "8"]
        arguments += ["--max_steps", "8", "--save_steps", "4", "--logging_steps", "2", "--batch_size", "8"]
        arguments += ["--out", str(tmp_path / name), "--cache", str(tmp_path / f"{name}-cache")]
        return run_process(tmp_path / "log", killed_run, where, arguments)

    assert command("nowhere", "whole") == 0, (tmp_path / "log").read_text()
    assert [command(where, "killed") for where in ("cache", "training", "nowhere")] == [-9, -9, 0]
    one, other = history(tmp_path / "whole"), history(tmp_path / "killed")
    assert [line["loss"] for line in one if "loss" in line] == [line["loss"] for line in other if "loss" in line]
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
