"""The audit of a run: what it compares, flags and reads. Expectations are worked by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.agents.completions import read_completions
from ollm_rl.agents.evaluation.audit import audit, format_audit, rises_while_shorter, same_number, signs
from ollm_rl.cli import main

QUESTION = "Ana has 5 apples and buys 3 more. How many apples does she have now?"
WORKED = "She has 5 + 3 = 8 apples. The answer is 8."


def row(completion: str, correct: bool, **more: Any) -> dict[str, Any]:
    return {"question": QUESTION, "answer": "8", "completion": completion, "correct": correct, "status": "ok", **more}


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (r"\boxed{8}", "8", True),
        ("#### $1,200.00", "1200", True),
        ("The answer is 8.0 apples", "8", True),
        ("First 3, then 9", "8", False),
        (r"\boxed{7} \boxed{9}", "8", False),
        ("no idea", "8", False),
        (r"\boxed{8/2}", "4", None),
        ("The answer is 8", "x + 1", None),
    ],
)
def test_the_independent_comparison_of_numbers(completion: str, answer: str, expected: bool | None) -> None:
    assert same_number(completion, answer) is expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (WORKED, set()),
        (r"First \boxed{8}, no, \boxed{9}: she has them after 5 + 3 = 9.", {"several_answers"}),
        (r"She has \boxed{8}, so 5 + 3 = 8 apples: \boxed{8}.", set()),
        ("Since she has 5 apples the answer is 5, which is what 8 - 3 leaves.", {"copied"}),
        ("The answer is 8.", {"no_working"}),
        ("#### 5", {"copied", "no_working"}),
        ("", set()),
    ],
)
def test_signs_of_reward_hacking(completion: str, expected: set[str]) -> None:
    assert signs(QUESTION, completion) == expected


def test_an_audit_lists_the_verdicts_that_other_checkers_do_not_share() -> None:
    rows = [
        row(WORKED, True, id="a"),
        row(WORKED, False, id="b"),
        row("The answer is 9.", True, id="c"),
        row("The answer is 9.", False, id="d"),
        row("The answer is 9.", False, id="e") | {"status": "timeout"},
    ]
    result = audit(rows)
    assert [found["id"] for found in result["disagreements"]] == ["b", "c"]
    assert [(found["numeric"], found["sympy"]) for found in result["disagreements"]] == [(True, True), (False, False)]
    assert (result["num_completions"], result["failures"]) == (5, 1)
    assert result["compared"] == {"numeric": 5, "sympy": 5}
    assert (result["signs"], result["signs_rewarded"]) == ({"no_working": 3}, {"no_working": 1})


def test_the_share_of_answers_that_are_only_the_last_expression_is_reported() -> None:
    unstated = "She has 5 + 3 = 8 apples."
    rows = [row(WORKED, True), row(unstated, True), row(unstated, False), row(WORKED, False), row("no idea", False)]
    rows[0]["extracted_by"] = "last_number"  # the run's own record counts
    result = audit(rows)
    assert (result["last_number_share"], result["last_number_share_rewarded"]) == (0.6, 1.0)
    assert "only the last expression: 60.0% of the completions, 100.0% of the right ones" in format_audit(result)
    assert audit(rows[3:])["last_number_share_rewarded"] is None


def test_reward_that_rises_while_completions_shrink_is_reported() -> None:
    def run(*iterations: tuple[float, int]) -> list[dict[str, Any]]:
        return [
            row(WORKED, True, iteration=number, reward=reward, tokens=tokens)
            for number, (reward, tokens) in enumerate(iterations)
        ]

    assert rises_while_shorter(run((0.2, 60), (0.3, 50), (0.6, 30))) == {
        "reward_first": 0.2,
        "reward_last": 0.6,
        "tokens_first": 60,
        "tokens_last": 30,
    }
    assert rises_while_shorter(run((0.2, 60), (0.3, 50), (0.6, 55))) is None
    assert rises_while_shorter(run((0.2, 60), (0.3, 50), (0.2, 30))) is None
    assert rises_while_shorter([row(WORKED, True)]) is None
    assert rises_while_shorter(run((0.2, 60), (0.3, 50), (0.6, 30))[1:]) is None, "the first file was deleted"


def test_the_command_audits_a_run_and_a_result_of_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run" / "completions"
    folder.mkdir(parents=True)
    for iteration in range(3):
        rows = [row(WORKED, iteration != 1, id="p", iteration=iteration, reward=1.0, tokens=20)]
        (folder / f"{iteration:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["audit", str(tmp_path / "run"), "--out", str(tmp_path / "audit.json")]) == 0
    text = capsys.readouterr().out
    assert "3 completions; decided by exact numbers: 3, by math-verify: 3; checks that had broken: 0" in text
    assert "1 p gold '8': recorded False, numbers True, math-verify True" in text
    assert len(json.loads((tmp_path / "audit.json").read_text())["disagreements"]) == 1

    (tmp_path / "eval.json").write_text(json.dumps({"accuracy": 1.0, "completions": [row(WORKED, True)]}))
    assert main(["audit", str(tmp_path / "eval.json")]) == 0
    assert "0 disagreements" in capsys.readouterr().out


def test_a_folder_without_completions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no completions; give the folder of an ollm-rl train"):
        read_completions(tmp_path)
