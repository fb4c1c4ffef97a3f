"""The paper's setting: the stand-in has the schemas of the real data, and the table says what was measured."""

import argparse
from pathlib import Path

import pytest

from ollm_rl.backbones.loading import load_tokenizer
from ollm_rl.experiments.studies import paper_cost
from ollm_rl.experiments.studies.paper_standin import TINY, write_standin
from ollm_rl.experiments.studies.paper_table import forced_table, free_table
from ollm_rl.problems.sources import load_problems


def test_the_stand_in_is_read_as_the_real_data_and_a_token_is_a_letter(tmp_path: Path) -> None:
    write_standin(tmp_path, TINY, (40, 60), 3)
    solved = load_problems(f"hf:{tmp_path}/OpenMathReasoning", split="cot")
    unsolved = load_problems(f"hf:{tmp_path}/OpenMathReasoning", split="additional_problems")
    test = load_problems(f"hf:{tmp_path}/Omni-MATH", split="test")
    assert [len(part) for part in (solved, unsolved, test)] == [3, 3, 3]
    assert not any(problem.solution for problem in unsolved)
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    for problem in solved:
        ids = tokenizer(problem.solution).input_ids
        assert 30 < len(ids) == len(problem.solution) < 60
        assert tokenizer.decode(ids) == problem.solution


def test_the_table_puts_measured_numbers_beside_the_papers() -> None:
    scores = {"token_accuracy": [0.5, 0.4, 0.6], "answer_correct": [0.25, 0.2, 0.3]}
    rows = forced_table({"columns": dict.fromkeys(("backbone", "lora", "oracle", "policy"), scores)}).rows
    assert list(map(str, rows[1])) == ["LoRA", "50.0 [40.0, 60.0]", "51 at its peak", "25.0 [20.0, 30.0]"]
    assert str(rows[2][2]) == "about 70"
    rates = {"language_switching_rate": 0.125, "degeneracy_rate": 0.5, "completion_tokens": 1234.4}
    result = {"model": "runs/paper/latent", "accuracy": 0.1, "low": 0.05, "high": 0.2, **rates}
    (row,) = free_table([result]).rows
    assert list(map(str, row)) == ["latent", "10.0 [5.0, 20.0]", "12.5", "50.0", "1,234"]


@pytest.mark.parametrize(
    ("broken", "tried", "left"),
    [
        ("options", ["options", "lora"], ["options", "forced", "latent", "vocabulary", "eval"]),
        ("latent", ["options", "lora", "forced", "latent", "vocabulary", "eval"], ["latent"]),
    ],
)
def test_a_stage_that_fails_keeps_only_those_from_being_measured_that_need_it(
    broken: str, tried: list[str], left: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def ended_well(name: str, _: argparse.Namespace) -> bool:
        seen.append(name)
        if name != broken:
            (tmp_path / f"{name}.json").touch()
        return name != broken

    monkeypatch.setattr(paper_cost, "ended_well", ended_well)
    assert paper_cost.measure_missing(argparse.Namespace(out=tmp_path, only=tuple(paper_cost.FULL_STEPS))) == left
    assert seen == tried


def test_stages_can_be_measured_on_several_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_cost, "ended_well", lambda name, _: name == "lora")
    only = argparse.Namespace(out=tmp_path, only=["lora", "vocabulary"])
    assert paper_cost.measure_missing(only) == ["vocabulary"], "options are not measured"
    (tmp_path / "options.json").touch()
    monkeypatch.setattr(paper_cost, "ended_well", lambda name, _: True)
    assert paper_cost.measure_missing(only) == []
