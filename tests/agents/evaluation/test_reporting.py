"""Reports of training runs: how they are grouped, where the numbers come from, and what is left out with a note."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ollm_rl.agents.evaluation.reporting as reporting_module
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.evaluation.config import ReportConfig
from ollm_rl.agents.evaluation.groups import histories
from ollm_rl.agents.evaluation.learning_rates import unchosen
from ollm_rl.agents.evaluation.reporting import group_runs, report_methods, run_report
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.training.trainer import train
from ollm_rl.backbones.names import resolve
from ollm_rl.cli import main
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.report.test_report import Page
from tests.tiny_models import save_backbone, tiny_model, tiny_tokenizer


def made_up_run(folder: Path, *, rewards: tuple[float, ...] = (0.25, 0.5), **settings: Any) -> Path:
    """A run folder as training writes it, without weights."""
    config = {
        "model": "gone",
        "action_space": "options",
        "seed": 0,
        "dtype": "float32",
        "max_new_tokens": 8,
        **settings,
    }
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"kind": "train", "config": config}))
    rates = {"language_switching_rate": 0.0, "degeneracy_rate": 0.5}
    history = [
        {
            "iteration": i,
            "episodes": 4 * (i + 1),
            "completion_tokens": 6.0,
            "seconds": 2.0 * (i + 1),
            "reward": r,
            "reward_correctness": r,
            **rates,
        }
        for i, r in enumerate(rewards)
    ]
    (folder / "metrics.json").write_text(json.dumps(history))
    rows = [
        {"iteration": 1, "question": q, "answer": "2", "completion": "1+1=2 <script>alert(1)</script>", "tokens": 8}
        | {"correct": correct, "switched": False, "flags": ["no_end"]}
        for q, correct in (("1+1?", True), ("1+1?", False), ("4-2?", True), ("4-2?", True))
    ]
    (folder / "completions").mkdir()
    (folder / "completions" / "000001.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def sft_run(folder: Path, **settings: Any) -> str:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"kind": "sft", "config": {"backbone": "tiny-arith", **settings}}))
    return str(folder)


def result_of(model: str, accuracy: list[bool], data: str = "arith") -> dict[str, Any]:
    rows = [
        {"question": f"{place}?", "answer": "1", "completion": "1", "correct": correct, "switched": False, "flags": []}
        for place, correct in enumerate(accuracy)
    ]
    return {
        "model": model,
        "data": data,
        "split": "test",
        "dtype": "float32",
        "max_new_tokens": 8,
        "num_problems": len(rows),
        "accuracy": sum(accuracy) / len(accuracy),
        "low": 0.1,
        "high": 0.9,
        "language_switching_rate": 0.25,
        "degeneracy_rate": 0.0,
        "completions": rows,
    }


def test_runs_that_differ_only_in_seed_are_grouped(tmp_path: Path) -> None:
    options = [sft_run(tmp_path / f"options{seed}", seed=seed, kl_target=0.4) for seed in (0, 1)]
    other = sft_run(tmp_path / "other", seed=0, kl_target=0.8)
    runs = [
        made_up_run(tmp_path / "latent-seed0", seed=0, model=options[0]),
        made_up_run(tmp_path / "latent-seed1", seed=1, model=options[1]),  # on options of the same settings
        made_up_run(tmp_path / "wide", seed=1, model=other),
    ]
    assert group_runs(runs) == {"latent": [str(runs[0]), str(runs[1])], "wide": [str(runs[2])]}


def test_two_settings_of_one_name_are_distinguished_by_their_folders(tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / "a" / "latent"), made_up_run(tmp_path / "b" / "latent", max_new_tokens=9)]
    assert list(group_runs(runs)) == ["latent", f"latent ({runs[1]})"]


def test_one_seed_twice_is_refused(tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / "a"), made_up_run(tmp_path / "b")]
    with pytest.raises(ValueError, match="b and .*a have the same settings and the same seed; leave one out"):
        group_runs(runs)


def test_without_results_the_last_iteration_is_reported(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "latent")
    (row,) = report_methods(tmp_path / "report.html", {"latent": [str(run)]}, [])
    assert (row["accuracy"], row["episodes"], row["seconds"], row["degeneracy_rate"]) == (0.5, 8, 4.0, 0.5)
    # Of two questions, half and all of the completions are right: a bootstrap over them reaches from 0.5 to 1.
    assert (row["low"], row["high"]) == (0.5, 1.0)
    page = Page((tmp_path / "report.html").read_text())
    assert "The last iteration of training" in page.text
    assert page.text.count("1+1=2 <script>alert(1)</script>") == 2  # one per question, shown and not run
    assert "iteration 1 of training" in page.text and "no_end" in page.text


def test_over_seeds_the_interval_is_the_wider_one_of_students_and_the_bootstrap(tmp_path: Path) -> None:
    folders = [str(made_up_run(tmp_path / f"seed{seed}", seed=seed)) for seed in (0, 1)]
    results = [result_of(folders[0], [True] * 3 + [False]), result_of(folders[1], [True] * 2 + [False] * 2)]
    (row,) = report_methods(tmp_path / "report.html", {"latent": folders}, results)
    # 0.625 +- 12.706 * 0.125, clipped to [0, 1].
    assert (row["accuracy"], row["low"], row["high"]) == (0.625, 0.0, 1.0)
    results = [result_of(folder, [True] * 3 + [False]) for folder in folders]
    (row,) = report_methods(tmp_path / "report.html", {"latent": folders}, results)
    assert row["accuracy"] == 0.75
    assert row["low"] < 0.75 < row["high"]  # not of width zero, though the seeds agree


def test_results_of_one_seed_are_used_unchanged_and_a_missing_one_is_reported(tmp_path: Path) -> None:
    folders = [str(made_up_run(tmp_path / name)) for name in ("a", "b")]
    results = [result_of(folders[0], [True, False]), result_of(folders[0], [True], data="rg:x")]
    rows = report_methods(tmp_path / "report.html", {name: [name] for name in folders}, results)
    assert [(row["data"], row["accuracy"], row["low"], row["high"]) for row in rows] == [
        ("arith", 0.5, 0.1, 0.9),
        ("rg:x", 1.0, 0.1, 0.9),
    ]
    page = Page((tmp_path / "report.html").read_text())
    assert f"There are no results for {folders[1]}: shown only in the plots of training." in page.text
    assert "2 problems of arith (test), 1 problems of rg:x (test)" in page.text


def test_a_page_says_of_how_many_seeds_the_results_are_and_calls_a_model_by_its_folder(tmp_path: Path) -> None:
    folders = [made_up_run(tmp_path / f"latent-seed{seed}", seed=seed) for seed in (0, 1)]
    options = [save_backbone(tmp_path / name / "options") for name in ("one", "other")]
    (tmp_path / "eval").mkdir()
    for name, model in {"a": str(folders[0]), "b": options[0], "c": options[1]}.items():
        (tmp_path / "eval" / f"{name}--arith.json").write_text(
            json.dumps({**result_of(model, [True, False]), "completion_tokens": 1.0})
        )
    run_report(ReportConfig(runs=folders, results=tmp_path / "eval", out=tmp_path / "report.html"))
    page = Page((tmp_path / "report.html").read_text())
    assert "latent was evaluated on 1 of its 2 seeds." in page.text
    assert "latent (mean of 2 seeds)" in page.text and "latent one seed" in page.text  # training and evaluation
    names = ["latent", "options", options[1]]  # the second one of that name by its whole path
    assert [text.split(":")[0] for _, _, text in page.spots if "[" in text and "after" not in text] == names


def test_of_several_learning_rates_the_one_of_the_best_validation_accuracy_is_chosen(tmp_path: Path) -> None:
    def left_out(mode: str, **rows: list[dict[str, float]]) -> dict[str, str]:
        for name, changes in rows.items():
            path = tmp_path / name / "metrics.json"
            merged = [{**row, **change} for row, change in zip(json.loads(path.read_text()), changes, strict=True)]
            path.write_text(json.dumps(merged))
        methods = {name: [resolve(str(tmp_path / name))] for name in ("slow", "fast", "other")}
        curves = {name: histories(models) for name, models in methods.items()}
        return unchosen(methods, curves, "reward", mode)

    made_up_run(tmp_path / "slow", learning_rate=1e-4, rewards=(0.1, 0.8))
    made_up_run(tmp_path / "fast", learning_rate=1e-3, rewards=(0.1, 0.9))
    made_up_run(tmp_path / "other", max_new_tokens=9)  # another method, not another learning rate
    by_reward = {"slow": "fast was chosen by the last reward of training"}
    assert left_out("max") == by_reward
    assert left_out("min") == {"fast": "slow was chosen by the last reward of training"}
    run_report(ReportConfig(runs=[tmp_path / "slow", tmp_path / "fast"], out=tmp_path / "report.html"))
    assert f"Pale grey: slow; {by_reward['slow']}." in (tmp_path / "report.html").read_text()
    assert left_out("max", slow=[{}, {"eval_accuracy": 0.7}]) == by_reward  # not of both
    validated = left_out("max", fast=[{"eval_accuracy": 0.9}, {"eval_accuracy": 0.6}])
    assert validated == {"fast": "slow was chosen by validation accuracy"}


def test_a_run_whose_model_is_gone_gets_a_note_in_place_of_the_explorer(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "latent")
    run_report(ReportConfig(runs=[run], out=tmp_path / "report.html"))
    page = Page((tmp_path / "report.html").read_text())
    assert "latent has no explorer here: model='gone' holds neither plug-in" in page.text
    assert "Option explorer" not in page.text and page.count("svg") > 3


def test_half_a_character_costs_its_explorer_not_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_up_run(tmp_path / "latent")
    path = run / "completions" / "000001.jsonl"
    path.write_text(path.read_text().replace("1+1?", r"1\ud800?"))
    policy = OptionPolicy(OptionModel(tiny_model("llama"), OptionConfig(num_options=4, width=8)))
    monkeypatch.setattr(reporting_module, "load_policy", lambda *arguments, **settings: (policy, tiny_tokenizer()))
    run_report(ReportConfig(runs=[run], out=tmp_path / "report.html"))
    page = Page((tmp_path / "report.html").read_text())
    assert "latent has no explorer here: problem '0' has a lone surrogate" in page.text
    assert "1??" in page.text and page.count("svg") > 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "nowhere"], "nowhere holds no run (no run.json); give the out folder of an ollm-rl train"),
        (["report", "options"], "options holds a run of ollm-rl sft, not of ollm-rl train"),
        (["report", "empty"], "empty has no metrics yet; let ollm-rl train finish an iteration"),
        (
            ["report", "latent", "--results", "latent/completions"],
            "latent/completions holds no results; give the folder",
        ),
        (["report", "latent", "--out", "report.pdf"], "out='report.pdf' must be an HTML file"),
        (["explore", "--model", "backbone", "--prompt", "1+1?"], "model='backbone' has no options to explore"),
        (["explore", "--model", "backbone", "--prompt", " "], "prompt is empty"),
        (["explore", "--model", "backbone", "--prompt", "1", "--max_new_tokens", "0"], "max_new_tokens=0 must be"),
    ],
)
def test_a_mistake_gets_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_backbone(tmp_path / "backbone")
    sft_run(tmp_path / "options", seed=0)
    made_up_run(tmp_path / "latent")
    made_up_run(tmp_path / "empty", rewards=())
    (tmp_path / "empty" / "metrics.json").unlink()
    assert main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ollm-rl: ")]
    assert message in line
    assert not list(tmp_path.glob("*.html"))


def test_runs_of_both_action_spaces_are_reported_with_explorer_and_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_backbone(tmp_path / "backbone")
    torch.manual_seed(0)
    model = OptionModel.from_backbone("backbone", OptionConfig(num_options=4, width=8))
    with torch.no_grad():
        model.adapter.decoder_out.weight.mul_(8.0)  # so that untrained options differ
    model.save_pretrained("options")
    rows = [{"question": f"{n}+1?", "answer": n + 1} for n in range(8)]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common: dict[str, Any] = {"data": "jsonl:data.jsonl", "episodes": 8, "iterations": 2, "max_new_tokens": 6}
    for seed in (0, 1):
        train(RLConfig(out=Path(f"latent{seed}"), model="options", seed=seed, algorithm="ppo", group_size=2, **common))
    train(RLConfig(out=Path("tokens"), model="backbone", action_space="tokens", lora_rank=2, **common))
    models = ["latent0", "latent1", "tokens", "options", "backbone"]
    data = ["--data", "jsonl:data.jsonl", "--max_new_tokens", "6"]
    assert main(["eval", "--model", *models, *data, "--out", "results"]) == 0
    assert main(["report", "latent0", "latent1", "tokens", "--results", "results", "--out", "page.html"]) == 0
    page = Page(Path("page.html").read_text())
    assert page.open == []
    for text in ("latent (mean of 2 seeds)", "tokens (one seed)", "Option explorer", "8 problems of jsonl:data.jsonl"):
        assert text in page.text
    for method in ("latent", "tokens", "options", "backbone"):  # the eight problems, with what each method wrote
        assert page.text.count(f"✓ {method}") + page.text.count(f"✗ {method}") == 8
    # The latent policy's and the options' own, four completions each, and the eight problems.
    assert page.count("details") == 2 * 4 + 8
    assert (
        main(["explore", "--model", "latent0", "--prompt", "3+1?", "--out", "one.html", "--max_new_tokens", "6"]) == 0
    )
    assert "3+1?" in Page(Path("one.html").read_text()).text
    shutil.rmtree("options")  # the report leaves out what needs it
    assert main(["report", "latent0", "--out", "less.html"]) == 0
    assert "latent0 has no explorer here" in Page(Path("less.html").read_text()).text
    assert "; written to less.html; " in capsys.readouterr().out.splitlines()[-1]


def test_a_run_without_kept_completions_is_reported_all_the_same(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "latent")
    shutil.rmtree(run / "completions")
    (row,) = report_methods(tmp_path / "report.html", {"latent": [str(run)]}, [])
    assert row["accuracy"] == 0.5 and math.isnan(row["low"])
    assert "Completions to read" not in (tmp_path / "report.html").read_text()
