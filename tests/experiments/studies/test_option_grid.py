"""The grid of option settings: every row is measured once, and the tables agree with the rows."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import ollm_rl.experiments.studies.option_grid as grid
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.problem import Problem
from tests.tiny_models import save_backbone, tiny_model, tiny_tokenizer

POLICIES = "uniform", "policy", "marginal"
SETTINGS = {f"{policy}{identity}, KL 0.4" for policy in POLICIES for identity in ("", ", identity")}


def test_every_setting_is_trained_and_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = save_backbone(tmp_path / "backbone")
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"{n}+1?", "solution": f"#### {n + 1}", "answer": n + 1} for n in range(8)]
    data.write_text("\n".join(map(json.dumps, rows)))
    sources = [word for name in ("train", "forced", "free") for word in (f"--{name}", f"jsonl:{data}")]
    arguments = ["--backbone", backbone, *sources, "--out", str(tmp_path / "out"), "--seeds", "0"]
    arguments += ["--steps", "10", "--batch-size", "4", "--max-new-tokens", "8", "--num-slots", "8"]
    monkeypatch.setattr(sys, "argv", ["option_grid", *arguments])
    monkeypatch.setattr(grid, "KL_TARGETS", (0.4,))
    # The default width is too large for a backbone this small.
    monkeypatch.setattr(grid, "OptionConfig", lambda **settings: OptionConfig(**settings, num_options=4, width=8))
    grid.main()
    rows_written = {path.stem for path in (tmp_path / "out" / "rows").iterdir()}
    assert rows_written == {f"{name}, seed 0" for name in SETTINGS | {"backbone"}}
    row = json.loads((tmp_path / "out" / "rows" / "policy, identity, KL 0.4, seed 0.json").read_text())
    assert list(row["forced"]["columns"]) == ["backbone", "lora", "oracle", "encoder", "policy", "mixture"]
    run = json.loads((tmp_path / "out" / "runs" / "policy, identity, KL 0.4, seed 0" / "run.json").read_text())
    options = run["config"]["options"]
    assert (options["prior"], options["identity_option"], options["kl_target"]) == ("policy", True, 0.4)
    run = json.loads((tmp_path / "out" / "runs" / "marginal, KL 0.4, seed 0" / "run.json").read_text())
    assert (run["config"]["options"]["prior"], run["config"]["options"]["policy_objective"]) == ("uniform", "marginal")
    first = capsys.readouterr().out
    monkeypatch.setattr(grid, "measure_setting", lambda *_: pytest.fail("measured again"))
    grid.main()
    assert capsys.readouterr().out.splitlines()[-6:] == first.splitlines()[-6:]


def test_a_row_that_another_process_works_on_is_skipped(tmp_path: Path) -> None:
    with FileLock(tmp_path / "taken.lock"):
        grid.take(tmp_path / "taken.json", lambda: pytest.fail("measured twice"))
    grid.take(tmp_path / "free.json", lambda: {"seed": 3})
    assert json.loads((tmp_path / "free.json").read_text())["seed"] == 3
    assert not (tmp_path / "taken.json").exists()


def test_options_are_drawn_uniformly_and_pass_at_8_needs_one_right_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = OptionPolicy(OptionModel(tiny_model("llama"), OptionConfig(num_options=4, width=8)))
    problems = [Problem(id=name, question=name, solution="", answer="1", language="en") for name in "abc"]
    seen: list[tuple[int, bool]] = []

    def evaluate(policy: OptionPolicy, _: Any, samples: list[Problem], **settings: Any) -> dict[str, Any]:
        logits = policy.policy(torch.randn(5, 32))
        seen.append((len(samples), bool((logits == logits[:, :1]).all())))
        right = [index in (3, 5) for index in range(len(samples))]  # two of sixteen samples, both of the first problem
        return {"accuracy": 0.5, "completion_tokens": 6.0, "completions": [{"correct": each} for each in right]}

    monkeypatch.setattr(grid, "evaluate", evaluate)
    args = argparse.Namespace(max_new_tokens=8, num_slots=4, sampled=2)
    found = grid.free_running(policy, tiny_tokenizer(), problems, args, seed=0)
    assert found.pop("greedy_correct") == [0, 0, 0]
    assert found == {"greedy": 0.5, "greedy_tokens": 6.0, "pass_at_8": 0.5, "pass_at_1": 2 / 16}
    assert seen == [(3, False), (16, True)], "greedy on all three, then eight samples of equal options of two"


def test_a_cell_is_the_mean_over_seeds_with_the_lowest_and_highest(tmp_path: Path) -> None:
    scores = {"token_accuracy": [0.5, 0, 1], "nll": [1.0, 0, 2], "answer_correct": [0.25, 0, 1]}
    options = dict.fromkeys(
        ("distinct_tokens", "live_share", "mutual_information", "mode_coverage_live", "mode_coverage_first"),
        [1.5, 1, 2],
    )
    for seed, greedy in ((0, 0.25), (1, 0.5)):
        free: dict[str, Any] = {"greedy": greedy, "greedy_tokens": 10.0, "pass_at_1": 0.5, "pass_at_8": 1.0}
        free["greedy_correct"] = [1, seed, 0, 0]
        forced = {
            "columns": {"backbone": scores, "oracle": {**scores, "gain_per_nat": [2.0, 1, 3]}},
            "options": options,
        }
        row = {"seed": seed, "trainable_share": 0.0156, "forced": forced, "free": free}
        (tmp_path / f"uniform, KL 0.2, seed {seed}.json").write_text(json.dumps(row))
        beside = {**free, "greedy_correct": [0, 0, 0, 0]}
        (tmp_path / f"backbone, seed {seed}.json").write_text(json.dumps({"seed": seed, "free": beside}))
    text = grid.tables(tmp_path)
    assert "| teacher-forced nll | backbone | oracle |" in text
    assert "| uniform, KL 0.2 | 1.000 (1.000, 1.000) | 1.000 (1.000, 1.000) |" in text
    assert "| 2.000 (2.000, 2.000) | 1.56% |" in text
    assert "| backbone | 0.375 (0.250, 0.500) | 10.000 (10.000, 10.000) | 0.500 (0.500, 0.500) |" in text
    # Of four problems, one is right with seed 0 and two with seed 1, against none: 37.5 points.
    assert "| 1.000 (1.000, 1.000) | 37.5 (" in text


def test_tables_wait_for_the_first_rows(tmp_path: Path) -> None:
    assert grid.tables(tmp_path).startswith("no tables yet")
    (tmp_path / "backbone, seed 0.json").write_text('{"seed": 0, "free": {}}')
    assert grid.tables(tmp_path).startswith("no tables yet")
