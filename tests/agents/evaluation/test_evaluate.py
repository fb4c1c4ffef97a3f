"""Evaluation of several models on several problem sets: its files, and resuming where it stopped."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ollm_rl.agents.evaluation.free_running as evaluate_module
from ollm_rl.agents.completions import Completion, read_completions
from ollm_rl.agents.evaluation.config import EvalConfig
from ollm_rl.agents.evaluation.free_running import evaluate, measured, run_eval
from ollm_rl.agents.evaluation.results import format_results, hash_weights
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.answers.pool import Verdict
from ollm_rl.backbones.names import resolve
from ollm_rl.cli import main
from ollm_rl.errors import UsageError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.sources import load_problems
from tests.tiny_models import save_backbone

NUMBERS = ("accuracy", "low", "high", "completion_tokens", "completions", "num_problems", "degeneracy_rate")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a backbone, options on it, and two problem sets."""
    monkeypatch.chdir(tmp_path)
    save_backbone(tmp_path / "backbone")
    torch.manual_seed(0)
    OptionModel.from_backbone("backbone", OptionConfig(num_options=4, width=8)).save_pretrained(tmp_path / "options")
    for name, count in (("small", 3), ("large", 10)):
        rows = [{"question": f"{n}+1?", "answer": n + 1} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def config(**changes: Any) -> EvalConfig:
    settings: dict[str, Any] = {"model": ["options", "backbone"], "data": ["jsonl:small.jsonl", "jsonl:large.jsonl"]}
    return EvalConfig(**{**settings, "out": Path("results"), "max_new_tokens": 6, "num_slots": 2, **changes})


def test_results_that_would_replace_each_other_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError) as raised:
        run_eval(config(model=["options", "./options"]))
    assert str(raised.value) == (
        "options on jsonl:small.jsonl and ./options on jsonl:small.jsonl would both be written to "
        "results/options--jsonl-small.jsonl.json; leave one out"
    )
    assert not (folder / "results").exists()
    assert len(run_eval(config(model=["options", "./options"], data=["jsonl:small.jsonl"], out=None))) == 2


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of prompts of every rollout from now on."""
    calls: list[int] = []

    def counted(turns: Any, prompts: Any, **settings: Any) -> Any:
        calls.append(len(prompts))
        return collect(turns, prompts, **settings)

    collect = evaluate_module.collect
    monkeypatch.setattr(evaluate_module, "collect", counted)
    return calls


def test_every_model_is_evaluated_on_every_problem_set_and_all_are_in_one_table(folder: Path) -> None:
    results = run_eval(config())
    pairs = [(result["model"], result["data"], result["num_problems"]) for result in results]
    assert pairs == [
        ("options", "jsonl:small.jsonl", 3),
        ("options", "jsonl:large.jsonl", 10),
        ("backbone", "jsonl:small.jsonl", 3),
        ("backbone", "jsonl:large.jsonl", 10),
    ]
    table = (folder / "results" / "results.md").read_text().splitlines()
    assert table[0].startswith("| model | problems | accuracy, % |") and len(table) == 2 + 4
    listed = json.loads((folder / "results" / "results.json").read_text())
    assert {(row["model"], row["data"]) for row in listed} == {pair[:2] for pair in pairs}
    assert "completions" not in listed[0] and listed[0]["commit"]
    assert len(read_completions(folder / "results" / "options--jsonl-large.jsonl.json")) == 10


def test_python_gives_the_same_numbers(folder: Path) -> None:
    (kept,) = run_eval(config(model=["options"], data=["jsonl:large.jsonl"]))
    policy, tokenizer = load_policy("options")
    problems = load_problems("jsonl:large.jsonl")
    direct = evaluate(policy, tokenizer, problems, max_new_tokens=6, num_slots=32)
    assert {name: kept[name] for name in NUMBERS} == {name: direct[name] for name in NUMBERS}
    assert kept["completion_tokens"] == sum(row["tokens"] for row in kept["completions"]) / 10


def test_pairs_already_evaluated_are_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_eval(config(model=["options"]))
    calls = count_calls(monkeypatch)
    monkeypatch.setattr(evaluate_module, "load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    assert run_eval(config(model=["options"])) == first
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    calls = count_calls(monkeypatch)
    again = run_eval(config())
    assert again[:2] == first and sum(calls) == 3 + 10  # only the backbone


@pytest.mark.parametrize("sample", [False, True])
def test_a_killed_evaluation_resumes_from_its_last_part(
    sample: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wanted,) = run_eval(config(model=["options"], data=["jsonl:large.jsonl"], out=None, sample=sample))
    run = config(model=["options"], data=["jsonl:large.jsonl"], sample=sample)
    calls = count_calls(monkeypatch)
    counted = evaluate_module.collect

    def killed(*arguments: Any, **settings: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        return counted(*arguments, **settings)

    monkeypatch.setattr(evaluate_module, "collect", killed)
    with pytest.raises(KeyboardInterrupt):
        run_eval(run)
    assert calls == [4, 4]
    assert [path.suffix for path in (folder / "results").iterdir()] == [".partial"]
    monkeypatch.setattr(evaluate_module, "collect", counted)
    (result,) = run_eval(run)
    assert calls == [4, 4, 2]
    assert {name: result[name] for name in NUMBERS} == {name: wanted[name] for name in NUMBERS}
    assert not list((folder / "results").glob("*.partial"))


def test_a_model_that_was_trained_further_is_evaluated_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = config(model=["options"], data=["jsonl:small.jsonl"])
    run_eval(run)
    torch.manual_seed(1)
    OptionModel.from_backbone("backbone", OptionConfig(num_options=4, width=8)).save_pretrained("options")
    calls = count_calls(monkeypatch)
    run_eval(run)
    assert calls == [3]


def test_the_options_below_a_run_count_as_its_weights(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text('{"kind": "train", "config": {"model": "options"}}')
    before = hash_weights(resolve("run"))
    assert hash_weights(resolve("run")) == before
    torch.manual_seed(1)
    OptionModel.from_backbone("backbone", OptionConfig(num_options=4, width=8)).save_pretrained("options")
    assert hash_weights(resolve("run")) != before


def test_the_backbone_below_a_lora_counts_as_its_weights(folder: Path) -> None:
    (folder / "lora").mkdir()
    description = {"peft_type": "LORA", "base_model_name_or_path": "backbone"}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(description))
    before = hash_weights(resolve("lora"))
    assert hash_weights(resolve("lora")) == before
    save_backbone(folder / "backbone", seed=1)
    assert hash_weights(resolve("lora")) != before


def test_problems_that_changed_are_evaluated_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = config(model=["options"], data=["jsonl:small.jsonl"])
    run_eval(run)
    (folder / "small.jsonl").write_text('{"question": "9+9?", "answer": "18"}')
    calls = count_calls(monkeypatch)
    run_eval(run)
    assert calls == [1]


def test_results_of_other_settings_are_refused_before_anything_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_eval(config(data=["jsonl:large.jsonl"]))
    calls = count_calls(monkeypatch)
    words = ["--model", "options", "--data", "jsonl:small.jsonl", "jsonl:large.jsonl", "--max_new_tokens", "5"]
    assert main(["eval", *words, "--out", "results"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "holds another evaluation (max_new_tokens is 6 there, 5 here); give another out folder" in line
    assert calls == []


def test_the_table_has_the_numbers_worked_by_hand() -> None:
    result = {"model": "a|b", "data": "arith", "num_problems": 1319, "accuracy": 0.4125, "low": 0.39, "high": 0.4349}
    result |= {"language_switching_rate": 0.0, "degeneracy_rate": 1.0, "completion_tokens": 20.04}
    assert format_results([result]).splitlines() == [
        "| model | problems | accuracy, % | language switching, % | degenerate, % | tokens |",
        "|---|---|---|---|---|---|",
        r"| a\|b | 1,319 of arith | 41.2 [39.0, 43.5] | 0.0 | 100.0 | 20.0 |",
    ]
    heading, _, row = format_results([{**result, "pass_at_2": 0.5, "reward_look_at_me": 0.25}]).splitlines()
    assert heading.endswith("| tokens | pass@2, % | reward look_at_me |") and row.endswith("| 20.0 | 50.0 | 0.250 |")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ["options", "options"]}, "names one twice"),
        ({"out": Path("result.json")}, "must be a folder"),
        ({"model": "options"}, r"model='options' must be a list, such as \['options'\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_every_flag_has_its_own_rate_and_switches_are_counted_by_words() -> None:
    texts = ["The answer is 3.", "7 7 7 7 7 7 7 7 7", "", "La respuesta es 3."]
    verdict = Verdict(False, None, None, "ok")
    problems = [problem for problem in load_problems("arith", limit=40) if problem.language == "en"][:4]
    result = measured(
        [
            Completion(problem=problem, text=text, tokens=1, terminated=False, verdict=verdict)
            for problem, text in zip(problems, texts, strict=True)
        ]
    )
    rates = {name: value for name, value in result.items() if name.endswith("_rate")}
    assert rates == {
        "language_switching_rate": 0.25,
        "unknown_language_rate": 0.0,
        "degeneracy_rate": 1.0,
        "loop_rate": 0.25,
        "no_end_rate": 1.0,
        "gibberish_rate": 0.0,
        "empty_rate": 0.25,
        "no_answer_rate": 0.0,
    }
    assert result["switches_per_1000_words"] == pytest.approx(1000 / 6)  # one, in six words
    assert [(row["words"], row["switches"]) for row in result["completions"]] == [(3, 0), (0, 0), (0, 0), (3, 1)]
    assert result["completions"][1]["flags"] == ["loop", "no_end"]
