"""The paper's setting: the stand-in has the schemas of the real data, and the table says what was measured."""

import argparse
from pathlib import Path

import pytest

from ollm_rl.backbones.loading import load_tokenizer
from ollm_rl.cli import main
from ollm_rl.experiments.studies import paper_cost, paper_table
from ollm_rl.experiments.studies.paper_standin import TINY, write_standin
from ollm_rl.experiments.studies.paper_table import forced_table, free_table
from ollm_rl.problems.sources import load_problems
from tests.experiments.studies.test_scripts import recorded_by

SMALLER = {
    "SFT": "--limit 4 --batch_size 4 --max_length 64 --dtype float32",
    "LORA": "--gradient_accumulation_steps 2",
    "FORCED": "--dtype float32",
    "RL": "--limit 4 --iterations 1 --episodes 8 --num_slots 8 --minibatches 1 --max_new_tokens 4 --dtype float32",
    "EVAL": "--max_new_tokens 4 --num_slots 8 --dtype float32",
}


def test_the_script_leads_from_the_stand_in_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, flags in SMALLER.items():
        monkeypatch.setenv(name, flags)
    *commands, last = recorded_by("paper.sh", tmp_path)
    write_standin(tmp_path / "data", TINY, (40, 60), 4)
    (tmp_path / "data/model").rename(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert [words[2] for words in commands] == ["sft", "sft", "teacher-forced", "train", "train", "eval"]
    for words in commands:
        assert main(words[2:]) == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", last[1:])
    paper_table.main()
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    forced = ["method", "backbone", "LoRA", "OLLM, optimal selection", "OLLM, policy"]
    assert rows[:5] == [f"| {name}" for name in forced]
    assert sorted(rows[6:]) == [f"| {name}" for name in ("latent", "lora", "model", "options", "vocabulary")]


def test_the_stand_in_is_read_as_the_real_data_and_a_token_is_a_letter(tmp_path: Path) -> None:
    write_standin(tmp_path, TINY, (40, 60), 3)
    solved = load_problems(f"hf:{tmp_path}/OpenMathReasoning", split="cot")
    unsolved = load_problems(f"hf:{tmp_path}/OpenMathReasoning", split="additional_problems")
    test = load_problems(f"hf:{tmp_path}/Omni-MATH", split="test")
    assert [len(part) for part in (solved, unsolved, test)] == [3, 3, 3]
    assert not any(problem.solution for problem in unsolved)
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    assert len(tokenizer) == TINY["vocab_size"], "so a random token hardly ever ends a completion"
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


def test_processes_that_start_at_the_same_time_write_the_stand_ins_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path, *_: object) -> None:
        (folder / "model").mkdir(parents=True)
        others = tmp_path / "standin/model"  # of a process that ends first
        others.mkdir(parents=True, exist_ok=True)
        (others / "theirs").touch()

    monkeypatch.setattr(paper_cost, "write_standin", write)
    for _ in range(2):
        paper_cost.write_once(tmp_path, tiny=True)
        assert [path.name for path in tmp_path.iterdir()] == ["standin"]
        assert (tmp_path / "standin/model/theirs").exists()
