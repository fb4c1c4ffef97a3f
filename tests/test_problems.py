"""Problems from every kind of source, and what a broken source is told."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from ollm_rl import arith
from ollm_rl.problems import Problem, load_problems


@pytest.fixture(autouse=True)
def dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_rows(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def message_of(spec: str, split: str = "train", limit: int | None = None) -> str:
    """Return the one-line message of the ValueError that ``spec`` raises."""
    with pytest.raises(ValueError) as caught:
        load_problems(spec, split=split, limit=limit)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_importing_the_module_loads_neither_torch_nor_datasets() -> None:
    code = (
        "import sys, ollm_rl.problems\n"
        "assert not {'torch', 'datasets', 'transformers', 'reasoning_gym'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent, timeout=60)


def test_arith_splits_are_the_streams_of_the_generator() -> None:
    for split, stream in (("train", 0), ("validation", 1), ("test", 2)):
        problems = load_problems("arith", split=split, limit=5, seed=3)
        expected = arith.generate(5, seed=3, stream=stream)
        assert [problem.question for problem in problems] == [item.question for item in expected]
        assert [problem.answer for problem in problems] == [str(item.answer) for item in expected]
        assert {problem.language for problem in problems} <= {"en", "es"}
        assert len({problem.id for problem in problems}) == 5


def test_arith_without_a_limit_gives_ten_thousand() -> None:
    assert len(load_problems("arith")) == 10_000


def test_reasoning_gym_gives_equal_problems_for_equal_seeds_only() -> None:
    pytest.importorskip("reasoning_gym")
    first = load_problems("rg:chain_sum", limit=20, seed=1)
    assert first == load_problems("rg:chain_sum", limit=20, seed=1)
    assert all(problem.solution == "" and problem.language == "en" for problem in first)
    # "State the final answer to the following arithmetic problem: 12 + 34 =" can be worked out here.
    for problem in first:
        terms = problem.question.partition(":")[2].replace("=", "").replace("- ", "-").replace("+ ", "")
        assert sum(int(term) for term in terms.split()) == int(problem.answer)
    questions = {problem.question for problem in first}
    assert not questions & {problem.question for problem in load_problems("rg:chain_sum", limit=20, seed=2)}
    assert not questions & {
        problem.question for problem in load_problems("rg:chain_sum", split="test", limit=20, seed=1)
    }


def test_an_unknown_reasoning_gym_task_is_told_the_close_names() -> None:
    pytest.importorskip("reasoning_gym")
    assert "chain_sum" in message_of("rg:chain_sums")
    assert "rg:rubiks_cube" in message_of("rg:rubiks_cube", limit=2)  # its entries have no reference answer
    assert "rg:composite" in message_of("rg:composite", limit=2)  # needs a list of datasets


def test_missing_reasoning_gym_is_told_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert "pip install 'ollm-rl[rg]'" in message_of("rg:chain_sum")


def test_jsonl_fields_become_text_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text(
        '{"question": "1+1?", "answer": 2}\n\n'
        '{"question": "¿1/2?", "answer": 0.5, "solution": "Es 0.5.", "lang": "es", "id": 7}\r\n'
        '{"question": "2+2?", "answer": "4", "language": "de", "solution": null}',
        encoding="utf-8",
    )
    assert load_problems(f"jsonl:{path}") == [
        Problem(id="sums-1", question="1+1?", solution="", answer="2", language="en"),
        Problem(id="7", question="¿1/2?", solution="Es 0.5.", answer="0.5", language="es"),
        Problem(id="sums-4", question="2+2?", solution="", answer="4", language="de"),
    ]
    assert [problem.answer for problem in load_problems(f"jsonl:{path}", limit=2, seed=9)] == ["2", "0.5"]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"question": "q", "answer": }', ["malformed JSON"]),
        ("[1, 2]", ["list"]),
        ('{"question": "q"}', ["'answer'", "missing"]),
        ('{"answer": "a"}', ["'question'", "missing"]),
        ('{"question": "q", "answer": true}', ["'answer'", "True"]),
        ('{"question": "q", "answer": null}', ["'answer'", "None"]),
        ('{"question": "q", "answer": NaN}', ["'answer'", "nan"]),
        ('{"question": " ", "answer": 1}', ["'question'", "blank"]),
        ('{"question": "q", "answer": 1, "solution": ["s"]}', ["'solution'", "['s']"]),
    ],
)
def test_a_broken_jsonl_line_is_named_with_its_file_and_field(tmp_path: Path, line: str, parts: list[str]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n\n' + line + "\n", encoding="utf-8")
    message = message_of(f"jsonl:{path}")
    for part in [str(path), "line 3", *parts]:
        assert part in message


def test_files_that_are_empty_missing_or_not_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n", encoding="utf-8")
    assert "holds no problems" in message_of(f"jsonl:{tmp_path / 'empty.jsonl'}")
    (tmp_path / "latin.jsonl").write_bytes('{"question": "¿q?", "answer": 1}'.encode("latin-1"))
    assert "latin.jsonl is not UTF-8" in message_of(f"jsonl:{tmp_path / 'latin.jsonl'}")
    with pytest.raises(FileNotFoundError, match="absent.jsonl"):
        load_problems(f"jsonl:{tmp_path / 'absent.jsonl'}")


def test_gsm8k_answers_are_split_from_their_solutions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # load_dataset takes a relative folder before the hub, so the known ids can be tested without a network.
    monkeypatch.chdir(tmp_path)
    write_rows(
        tmp_path / "openai/gsm8k/train.jsonl",
        {"question": "3 pens and 4 pens?", "answer": "3 + 4 = <<3+4=7>>7 pens.\n#### 7"},
        {"question": "2 and 2?", "answer": "Four.\n#### 4"},
    )
    first = load_problems("hf:openai/gsm8k", limit=1)
    assert first == [
        Problem(
            id="openai/gsm8k-train-0",
            question="3 pens and 4 pens?",
            solution="3 + 4 = <<3+4=7>>7 pens.",
            answer="7",
            language="en",
        )
    ]
    assert [problem.answer for problem in load_problems("hf:openai/gsm8k")] == ["7", "4"]


@pytest.mark.parametrize(
    ("folder", "row"),
    [
        ("nvidia/OpenMathReasoning", {"problem": "q", "generated_solution": "s", "expected_answer": "a"}),
        ("KbsdJames/Omni-MATH", {"problem": "q", "solution": "s", "answer": "a"}),
        ("someone/math-like", {"problem": "q", "solution": "s", "answer": "a"}),
        ("someone/plain", {"question": "q", "solution": "s", "answer": "a", "level": 3}),
        ("someone/unsolved", {"question": "q", "answer": "a"}),
    ],
)
def test_columns_of_known_and_usual_datasets_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, row: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / folder / "test.jsonl", row)
    solution = "" if folder == "someone/unsolved" else "s"
    assert load_problems(f"hf:{folder}", split="test") == [
        Problem(id=f"{folder}-test-0", question="q", solution=solution, answer="a", language="en")
    ]


def test_dataset_rows_without_an_answer_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(tmp_path / "gaps/train.jsonl", {"question": "q", "answer": None}, {"question": "q", "answer": "a"})
    with caplog.at_level(logging.WARNING):
        assert [problem.answer for problem in load_problems(f"hf:{tmp_path / 'gaps'}")] == ["a"]
    assert "1 of 2 rows" in caplog.text
    assert "holds no problems" in message_of(f"hf:{tmp_path / 'gaps'}", limit=1)


def test_datasets_that_cannot_be_read_are_named_with_the_reason(tmp_path: Path) -> None:
    write_rows(tmp_path / "odd/train.jsonl", {"prompt": "q", "target": "a"})
    message = message_of(f"hf:{tmp_path / 'odd'}")
    assert "prompt, target" in message and "question" in message
    assert "split='test'" in message_of(f"hf:{tmp_path / 'odd'}", split="test")
    assert "harder" in message_of(f"hf:{tmp_path / 'odd'}:harder")
    assert "absent" in message_of(f"hf:{tmp_path / 'absent'}")


@pytest.mark.parametrize("spec", ["gsm8k", "csv:a.csv", "", "arith:5", "jsonl:", "rg:", "hf"])
def test_an_unknown_source_is_told_the_four_forms(spec: str) -> None:
    message = message_of(spec)
    for form in ("arith", "rg:TASK", "jsonl:PATH", "hf:ID", repr(spec)):
        assert form in message


def test_limits_and_splits_that_mean_nothing_are_refused() -> None:
    assert "limit=0" in message_of("arith", limit=0)
    assert "split='dev'" in message_of("arith", split="dev")
