"""The problems that a run is trained and evaluated on."""

import json
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.evaluation.config import EvalConfig
from ollm_rl.agents.training.problems import evaluation_problems, training_problems
from ollm_rl.experiments import compare
from ollm_rl.experiments.config import CompareConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set with the splits train, validation and test, whose problems have columns of their own."""
    for split, questions in (("train", "abc"), ("validation", "de"), ("test", "f")):
        rows = [{"task": question, "truth": "1"} for question in questions]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def questions(folder: Path, **changes: Any) -> tuple[str, str]:
    settings: dict[str, Any] = {"data": f"hf:{folder}", "columns": "question=task,answer=truth", "eval_every": 8}
    config = RLConfig(out=folder / "run", model="m", **(settings | changes))
    problems = training_problems(config), evaluation_problems(config)
    train, held_out = ("".join(problem.question for problem in part) for part in problems)
    return train, held_out


def test_training_and_evaluation_name_their_splits_and_columns(folder: Path) -> None:
    assert questions(folder) == ("abc", "de")
    assert questions(folder, split="test", eval_split="train") == ("f", "abc")
    own = {"eval_data": f"jsonl:{folder}/test.jsonl", "eval_columns": "question=truth,answer=truth"}
    assert questions(folder, **own) == ("abc", "1")
    train, held_out = questions(folder, limit=2, eval_limit=1)
    assert len(train) == 2 and len(held_out) == 1


def test_the_training_problems_are_no_evaluation(folder: Path) -> None:
    parquet: dict[str, Any] = {"data": "parquet:x.parquet"}
    for changes in ({"eval_split": "train"}, {"split": "validation"}):
        with pytest.raises(ValueError, match="eval_every=8 would evaluate on the training problems; give eval_data"):
            questions(folder, **changes)
    with pytest.raises(ValueError, match="would evaluate on the training problems"):
        evaluation_problems(RLConfig(out=folder, model="m", eval_every=8, **parquet))


def test_the_final_evaluation_of_a_comparison_names_its_split_and_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[EvalConfig] = []
    monkeypatch.setattr(compare, "run_eval", seen.append)
    plan: dict[str, Any] = {"out": tmp_path, "methods": {"a": {}}, "baseline": "a"}
    run = RLConfig(out=tmp_path / "a", model="m", data="hf:d", columns="question=q,answer=a")
    compare.evaluation(CompareConfig(**plan))(run)
    other: dict[str, Any] = {"eval_data": "hf:e", "eval_split": "exam", "eval_columns": "question=x,answer=y"}
    compare.evaluation(CompareConfig(**plan, **other))(run)
    found = {(each.data[0], each.split, each.columns) for each in seen}
    assert found == {("hf:d", "test", "question=q,answer=a"), ("hf:e", "exam", "question=x,answer=y")}
