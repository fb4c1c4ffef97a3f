"""The last line of a command."""

from pathlib import Path

import pytest

from ollm_rl.agents.evaluation.config import AuditConfig, EvalConfig, ExploreConfig, ReportConfig
from ollm_rl.agents.evaluation.ending import audit_ending, eval_ending, explore_ending, report_ending
from ollm_rl.experiments.config import CompareConfig, DemoConfig, SweepConfig
from ollm_rl.experiments.ending import compare_ending, demo_ending, sweep_ending
from ollm_rl.report.ending import counted, ending


def test_a_line_says_result_place_and_a_command_that_can_be_pasted() -> None:
    line = ending("reward 0.500", Path("a run"), ["ollm-rl", "report", Path("a run")])
    assert line == "reward 0.500; written to a run; next: ollm-rl report 'a run'"
    assert ending("reward 0.500", None) == "reward 0.500; not written to a file (give --out)"
    assert [counted(number, "run") for number in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]


def test_pages_are_opened_in_the_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page, opened = Path("a page.html"), f"next: python -m webbrowser file://{tmp_path}/a%20page.html"
    report = ReportConfig(runs=[Path("a"), Path("b")], out=page)
    assert report_ending(page, report) == f"report of 2 runs; written to a page.html; {opened}"
    explore = ExploreConfig(model="runs/a", prompt="1+1?", out=page)
    assert explore_ending(page, explore) == f"options of runs/a; written to a page.html; {opened}"


def test_the_best_of_several_evaluations_is_named_and_a_backbone_gets_options_next() -> None:
    results = [{"model": "tiny-arith", "data": data, "accuracy": share} for data, share in (("a", 0.25), ("b", 0.5))]
    line = eval_ending(results, EvalConfig(model=["tiny-arith"], data=["a", "b"]))
    best = "highest accuracy 50.0% (tiny-arith on b); not written to a file (give --out)"
    assert line == f"{best}; next: ollm-rl sft --backbone tiny-arith --out runs/options --data a"


def test_a_checkpoint_is_reported_by_its_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"kind": "train", "config": {"action_space": "options", "model": "runs/options"}}')
    (run / "best.pt").touch()
    models = [str(run / "best.pt"), str(run)]
    results = [{"model": model, "data": "arith", "accuracy": 0.5} for model in models]
    assert eval_ending(results, EvalConfig(model=models)).endswith(f"next: ollm-rl report {run}")


def test_an_audit_counts_its_disagreements(tmp_path: Path) -> None:
    result = {"disagreements": [{}], "num_completions": 24}
    line = audit_ending(result, AuditConfig(run=tmp_path, out=Path("audit.json")))
    assert line == f"1 disagreement in 24 completions; written to audit.json; next: ollm-rl report {tmp_path}"
    assert "next" not in audit_ending(result, AuditConfig(run=tmp_path / "result.json"))


def test_experiments_end_with_their_result(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    opened = f"written to {page}; next: python -m webbrowser file://{page}"
    (tmp_path / "summary.json").write_text('{"methods": [{"method": "latent", "accuracy": 0.125}]}')
    assert demo_ending(page, DemoConfig(out=tmp_path)) == f"accuracy: latent 12.5%; {opened}"
    table = "setting,reward_mean,reward_std,num_seeds\nlr=1,0.25,0.0,2\nlr=2,0.75,0.0,2\nlr=2,0.75,0.0,2\n"
    (tmp_path / "table.csv").write_text(table)
    assert sweep_ending(page, SweepConfig(out=tmp_path)) == f"best setting: lr=2 (reward 0.750); {opened}"
    compared = CompareConfig(out=tmp_path, methods={"a": {}, "b": {}}, baseline="a", seeds=[0])
    assert compare_ending(page, compared) == f"2 methods on 1 fresh seed; {opened}"
