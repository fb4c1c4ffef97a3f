"""The command line: settings from YAML and flags, and one line with exit code 2 for every mistake."""

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from ollm_rl.cli import main, parse
from ollm_rl.errors import RunWarning
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.places import ROOT
from tests.tiny_models import save_backbone


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    return save_backbone(tmp_path / "backbone")


@pytest.fixture
def options(tmp_path: Path, backbone: str) -> str:
    torch.manual_seed(0)
    OptionModel.from_backbone(backbone, OptionConfig(num_options=4, width=8)).save_pretrained(tmp_path / "options")
    return str(tmp_path / "options")


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "data.jsonl"
    rows = [{"question": f"{n}+1?", "solution": f"#### {n + 1}", "answer": n + 1} for n in range(8)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{path}"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command with a mistake prints."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ollm-rl: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("ollm-rl: ")


def settings(*arguments: str) -> Any:
    return parse(list(arguments))[1]


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("demo", "--episodes"),
        ("sft", "--options.kl_target"),
        ("train", "--rewards.format"),
        ("sweep", "--scheduler"),
        ("eval", "--mode"),
        ("search", "--leaf_value"),
    ],
)
def test_every_command_explains_its_settings(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert flag in text and "--config" in text
    # Every setting is described by the string below its field.
    assert "Seed" in text
    usage, _ = text.split("\n\n", 1)
    assert usage.startswith(f"usage: ollm-rl {command} ") and usage.endswith("[--SETTING VALUE ...]")
    assert f"example: ollm-rl {command} --" in text


def test_the_usage_names_what_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    for command, usage in {"train": "--out OUT --model MODEL", "report": "RUNS", "demo": ""}.items():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        words = capsys.readouterr().out.split("\n\n", 1)[0].split()
        assert words == f"usage: ollm-rl {command} {usage} [--SETTING VALUE ...]".split()


def test_help_names_defaults_in_the_words_of_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Optimiser steps per pass over an iteration's episodes. (default: 4)" in text
    assert "speeds up rollouts on CUDA. (default: false)" in text
    assert "train if left out. --columns" in text
    assert not [word for word in ("null", "[]", "{}", "(type:", "Literal") if f" {word}" in text]


def test_a_list_in_yaml_is_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("model: [a, b]\n")
    assert settings("eval", "--config", str(path)).model == ["a", "b"]
    path.write_text("model: runs/latent\n")
    line = refusal(capsys, "eval", "--config", path)
    assert line == f"{path}: model='runs/latent' must be a list, such as ['runs/latent']"


def test_help_answers_without_importing_torch() -> None:
    code = (
        "import sys, ollm_rl.cli\ntry: ollm_rl.cli.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"
    for command in (
        "demo",
        "sft",
        "train",
        "sweep",
        "compare",
        "eval",
        "teacher-forced",
        "search",
        "report",
        "explore",
        "audit",
    ):
        assert command in result.stdout


def test_flags_override_the_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("batch_size: 8\nmax_steps: 7\noptions:\n  num_options: 5\n")
    found = settings("sft", "--config", str(path), "--out", "x", "--max_steps", "9", "--options.kl_target", "0.8")
    assert (found.batch_size, found.max_steps, found.options.num_options, found.options.kl_target) == (8, 9, 5, 0.8)


def test_a_list_takes_several_values_or_one() -> None:
    found = settings("eval", "--model", "a", "b", "--data", "rg:x", "--seed", "1")
    assert (found.model, found.data, found.seed) == (["a", "b"], ["rg:x"], 1)
    assert settings("eval", "--model", "a").data == ["arith"]
    assert settings("report", "x", "y", "--out", "z.html").runs == [Path("x"), Path("y")]


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "presets").glob("*.yaml")))
def test_every_preset_is_understood(path: Path) -> None:
    purpose = path.stem.rpartition("_")[2]
    commands = {"sweep": "sweep", "compare": "compare", "drift": "compare"}  # the study reads settings of a comparison
    command = commands.get(purpose, "sft" if purpose in ("backbone", "options", "lora") else "train")
    found = settings(command, "--config", str(path), "--out", "x", *(["--model", "y"] if command == "train" else []))
    assert str(found.out) == "x"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["bogus"], ["'bogus'", "demo", "train"]),
        ([], ["command", "demo"]),
        (["sft"], ["required", "out"]),
        (["sft", "--out", "x", "--max_steps", "many"], ["max_steps", "many"]),
        (["sft", "--out", "x", "--bogus", "1"], ["--bogus"]),
        (["sft", "--out", "x", "--config", "none.yaml"], ["none.yaml", "not exist"]),
        (["sft", "--out", "x", "--options.num_options", "0"], ["num_options=0", "at least 1"]),
        (["sft", "--out", "x", "--options.kl_target", "-1"], ["kl_target=-1", "more than 0"]),
        (["sft", "--out", "x", "--data", "jsonl:missing.jsonl"], ["no file missing.jsonl"]),
        (["sft", "--out", "x", "--data", "csv:missing"], ["'csv:missing'", "jsonl:PATH"]),
        (["sft", "--out", "x", "--backbone", "no/such-model"], ["'no/such-model'", "tiny-arith", "smollm2-135m"]),
        (
            ["train", "--out", "x", "--model", "nowhere"],
            ["model='nowhere' holds neither plug-in, LoRA nor training run", "ollm-rl sft"],
        ),
        (["train", "--out", "x", "--model", "y", "--episodes", "9"], ["episodes=9", "group_size=8"]),
        (["eval", "--model", "no/such-model"], ["'no/such-model'", "cannot be loaded"]),
        (["teacher-forced", "--model", "x"], ["x holds no option plug-in"]),
        (["search", "--model", "no/such-model"], ["'no/such-model'", "cannot be loaded"]),
        (["search", "--model", "x", "--method", "dfs"], ["method", "best-of-n", "beam", "mcts"]),
        (["search", "--model", "tiny-arith", "--budget_tokens", "9", "--limit", "2"], ["budget_tokens=9", "96"]),
        (["search", "--model", "x", "--leaf_value", "value_head"], ["'x' is no PPO run", "--algorithm ppo"]),
        (["audit", "nowhere"], ["nowhere holds no completions", "ollm-rl train"]),
        (["demo", "--episodes", "0"], ["episodes=0", "at least 1"]),
    ],
)
def test_a_mistake_in_the_settings_gets_one_line(
    arguments: list[str],
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal(capsys, *arguments)
    assert all(part in line for part in parts), line
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"question": "1+1?", "answer": "2"}\n{"question": ', ["line 2", "malformed JSON"]),
        ('{"question": "1+1?"}', ["line 1", "field 'answer' is missing"]),
        ("", ["holds no problems"]),
        ('{"question": "1+1?", "answer": "2"}', ["holds no worked solutions"]),
        (json.dumps({"question": "1+" * 60, "solution": "#### 2", "answer": 2}), ["121 tokens", "within 64"]),
    ],
)
def test_a_mistake_in_the_data_is_reported_with_its_location(
    content: str, parts: list[str], tmp_path: Path, backbone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(content)
    line = refusal(capsys, "sft", "--out", tmp_path / "x", "--backbone", backbone, "--data", f"jsonl:{path}")
    assert all(part in line for part in [*parts, "broken"]), line
    assert not (tmp_path / "x").exists()


def test_a_prompt_longer_than_the_context_is_reported_before_training(
    tmp_path: Path, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"id": "a-long-one", "question": "1+" * 30, "answer": 2}))
    run = ["train", "--out", tmp_path / "x", "--model", options, "--data", f"jsonl:{path}", "--max_new_tokens"]
    line = refusal(capsys, *run, 8)
    assert "the prompt of problem 'a-long-one' has 61 tokens and leaves no room" in line
    assert "no room for 64 more within 64" in refusal(capsys, *run, 64)
    assert not (tmp_path / "x").exists()


def test_a_model_without_an_output_head_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_backbone(tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "vit"}')
    line = refusal(capsys, "sft", "--out", tmp_path / "x", "--backbone", folder)
    assert "cannot be loaded" in line and "causal language model" in line


def test_a_plug_in_on_another_backbone_is_refused(
    tmp_path: Path, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_backbone(tmp_path / "backbone", seed=1)  # trained further
    line = refusal(capsys, "eval", "--model", options)
    assert "was trained on backbone" in line and "give the backbone it was trained on" in line


def test_a_folder_with_another_run_is_refused_and_left_unchanged(
    tmp_path: Path, backbone: str, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["sft", "--out", str(tmp_path / "run"), "--backbone", backbone, "--data", data, "--device", "cpu"]
    small = ["--max_steps", "2", "--batch_size", "4", "--options.width", "8"]
    assert main([*run, *small]) == 0
    before = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    line = refusal(capsys, *run, *small, "--seed", "1")
    assert "already holds a different run (seed is 0 there, 1 here)" in line
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == before


def test_a_run_that_saved_nothing_yet_cannot_be_evaluated(
    tmp_path: Path, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    held = {"kind": "train", "config": {"model": options}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(held))
    line = refusal(capsys, "eval", "--model", tmp_path / "run")
    assert "has saved no checkpoint yet" in line


def test_the_four_stages_run_one_after_the_other(
    tmp_path: Path, backbone: str, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, run, result = tmp_path / "options", tmp_path / "run", tmp_path / "results"
    common = ["--data", data, "--device", "cpu"]
    sft = ["--backbone", backbone, "--max_steps", "20", "--batch_size", "4", "--options.width", "8"]
    assert main(["sft", "--out", str(options), *sft, *common]) == 0
    rl = ["--iterations", "1", "--episodes", "16", "--max_new_tokens", "8"]
    assert main(["train", "--out", str(run), "--model", str(options), *rl, *common]) == 0
    assert main(["eval", "--model", str(run), "--out", str(result), "--max_new_tokens", "8", *common]) == 0
    *_, row, last = capsys.readouterr().out.splitlines()
    assert "| 8 of jsonl:" in row
    (measured,) = json.loads((result / "results.json").read_text())
    assert measured["num_problems"] == 8
    found = f"accuracy {100 * measured['accuracy']:.1f}% ({run} on {data})"
    assert last == f"{found}; written to {result}/results.md; next: ollm-rl report {run} --results {result}"
    assert main(["teacher-forced", "--model", str(options), *common]) == 0
    printed = capsys.readouterr().out
    assert "\noracle " in printed
    *_, last = printed.splitlines()
    assert last.startswith("the oracle over the options names ")
    unwritten = "not written to a file (give --out)"
    assert last.endswith(
        f"% more of the tokens than the backbone; {unwritten}; "
        f"next: ollm-rl train --model {options} --out runs/policy --data {data}"
    )
    budget = ["--budget_tokens", "12", "--max_new_tokens", "6"]
    saved = tmp_path / "search.json"
    assert main(["search", "--model", str(options), "--out", str(saved), *budget, *common]) == 0
    printed = capsys.readouterr().out
    assert "oracle (knows the answer)" in printed and "96 tokens generated, 0 of prefixes run again" in printed
    assert len(json.loads(saved.read_text())["problems"]) == 8
    *_, last = printed.splitlines()
    assert last.startswith("accuracy: by majority 0.0%, by ")
    assert last.endswith(f"; written to {saved}; next: ollm-rl eval --model {options} --data {data}")
    search = ("search", "--model", options, "--out", result, *budget, *common)
    assert "results is a folder; give a file" in refusal(capsys, *search)


def test_ctrl_c_says_how_to_resume(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*arguments: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("ollm_rl.cli.run", stop)
    assert main(["demo"]) == 130
    assert "the same command resumes from the last checkpoint" in capsys.readouterr().err


def test_our_warnings_are_lines_and_those_of_other_packages_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def speak(*arguments: object) -> str:
        warnings.warn("is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("worker 1 was lost;\nanother takes its place", RunWarning, stacklevel=1)
        logging.getLogger("ollm_rl.problems").warning("%d rows are not used", 2)
        return "done"

    monkeypatch.setattr("ollm_rl.cli.run", speak)
    for _ in range(2):  # nothing is left over that would say it twice
        assert main(["demo"]) == 0
        said = capsys.readouterr()
        assert said.out == "done\n"
        assert said.err == "worker 1 was lost; another takes its place\n2 rows are not used\n"
