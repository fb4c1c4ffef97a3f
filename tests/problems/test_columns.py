"""Known schemas, columns that the user names, and rows of messages, the same in every kind of source."""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest

from ollm_rl.problems import Problem, load_problems


def spec_of(kind: str, folder: Path, *rows: dict[str, Any]) -> str:
    """Rows written as a source of this kind."""
    folder.mkdir(exist_ok=True)
    path = folder / f"train.{kind}"
    if kind == "parquet":
        datasets.Dataset.from_list(list(rows)).to_parquet(path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return f"hf:{folder}" if kind == "json" else f"{kind}:{path}"


def texts(problem: Problem) -> tuple[str, str, str]:
    return problem.question, problem.solution, problem.answer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# As published, with the columns that are not read.
OPEN_MATH_REASONING = {
    "expected_answer": "7",
    "problem_type": "has_answer_extracted",
    "problem_source": "aops_c4_high_school_math",
    "generation_model": "DeepSeek-R1",
    "pass_rate_72b_tir": "0.5",
    "problem": "q",
    "generated_solution": r"<think>s</think> \boxed{7}",
    "inference_mode": "cot",
    "used_in_kaggle": True,
}
OMNI_MATH = {"domain": ["Algebra"], "difficulty": 4.5, "problem": "q", "solution": "s", "answer": "7", "source": "imo"}
MATH = {"problem": "q", "level": "Level 1", "type": "Algebra", "solution": r"s \boxed{7}"}
AIME = {"ID": "2024-I-1", "Problem": "q", "Solution": "s", "Answer": 7}
OLDER_AIME = {"ID": "1983-1", "Year": 1983, "Problem Number": 1, "Question": "q", "Answer": "7", "Part": None}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "json"])
def test_every_kind_of_source_knows_the_same_schemas(tmp_path: Path, kind: str) -> None:
    rows: dict[str, tuple[dict[str, Any], str]] = {
        "reasoning": (OPEN_MATH_REASONING, r"<think>s</think> \boxed{7}"),
        "omni": (OMNI_MATH, "s"),
        "math": (MATH, r"s \boxed{7}"),
        "gsm8k": ({"question": "q", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}, "3 + 4 = <<3+4=7>>7"),
        "aime": (AIME, "s"),
        "older": (OLDER_AIME, ""),
        "trl": ({"prompt": "q", "completion": r"s \boxed{7}"}, r"s \boxed{7}"),
        "chat": ({"prompt": [user("q")], "completion": [assistant("s\n#### 7")]}, "s"),
        "brief": ({"prompt": "q", "completion": "#### 7"}, "#### 7"),
        "judged": ({"prompt": [user("q")], "answer": "7"}, ""),
        "messages": ({"messages": [user("q"), assistant(r"s \boxed{7}")]}, r"s \boxed{7}"),
    }
    for name, (row, solution) in rows.items():
        (problem,) = load_problems(spec_of(kind, tmp_path / name, row))
        assert texts(problem) == ("q", solution, "7"), name


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "json"])
def test_named_columns_are_read_in_every_kind_of_source(tmp_path: Path, kind: str) -> None:
    row = {"answer": "9", "task": "q", "trace": r"s \boxed{7}", "truth": "8", "question": "other"}
    spec = spec_of(kind, tmp_path / "own", row)
    (problem,) = load_problems(spec, columns="question=task,solution=trace,answer=truth")
    assert texts(problem) == ("q", r"s \boxed{7}", "8")
    (problem,) = load_problems(spec, columns="question=task, solution=trace")
    assert texts(problem) == ("q", r"s \boxed{7}", "7")
    (problem,) = load_problems(spec, columns="answer=truth,question=task")
    assert texts(problem) == ("q", "", "8")
    chat = spec_of(kind, tmp_path / "chat", {"prompt": [user("q")], "completion": [assistant("7")]})
    (problem,) = load_problems(chat, columns="question=prompt,answer=completion")
    assert texts(problem) == ("q", "", "7")
    for wrong in (
        "question=tsak,answer=truth",
        "question=task,answer=turth",
        "question=task,solution=tarce,answer=truth",
    ):
        with pytest.raises(ValueError, match="'tsak'|'turth'|'tarce'"):
            load_problems(spec, columns=wrong)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("problem", "has the part 'problem'; give parts as in question=problem,solution=solution,answer=answer"),
        ("question=a,reply=b", "has the part 'reply=b'"),
        ("question=a,question=b", "has the part 'question=b'"),
        ("question=,answer=b", "has the part 'question='"),
        ("question=a", "must name the question, and the answer or the solution"),
        ("answer=a,solution=b", "must name the question"),
    ],
)
def test_columns_of_another_form_are_refused(columns: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_problems("jsonl:x", columns=columns)
    with pytest.raises(ValueError, match="is not used by generated problems; leave it out"):
        load_problems("arith", columns="question=a,answer=b")


def test_rows_of_several_turns_and_without_an_answer_are_no_problems(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = {"messages": [{"role": "system", "content": "Be brief."}, user("q"), assistant("s\n#### 7")]}
    turns = {"messages": [user("q"), assistant("a"), user("more"), assistant("#### 8")]}
    unanswered = {"messages": [user("q"), assistant("no idea")]}
    spec = spec_of("parquet", tmp_path / "chats", good, turns, unanswered)
    with caplog.at_level(logging.WARNING):
        assert [texts(problem) for problem in load_problems(spec)] == [("q", "s", "7")]
    assert "2 of 3 rows lack a question or an answer" in caplog.text
    assert "system messages of 1 rows are not used; give --system_prompt" in caplog.text
    for row, message in ((turns, "holds not one text of the user"), (unanswered, "'messages' states no answer")):
        with pytest.raises(ValueError, match=f"line 2: field .*{message}"):
            load_problems(spec_of("jsonl", tmp_path / "lines", good, row))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "json"])
def test_a_column_of_lists_or_objects_is_refused(tmp_path: Path, kind: str) -> None:
    for cell in (["7"], {"value": "7"}):
        spec = spec_of(kind, tmp_path / type(cell).__name__, {"question": "q", "answer": cell})
        with pytest.raises(ValueError, match=r"(\['7'\]|\{'value': '7'\})"):
            load_problems(spec)


def test_problems_that_are_published_without_solutions_have_none(tmp_path: Path) -> None:
    row = {**OPEN_MATH_REASONING, "generated_solution": "n/a", "generation_model": "n/a", "inference_mode": "n/a"}
    (problem,) = load_problems(spec_of("parquet", tmp_path / "additional", row))
    assert texts(problem) == ("q", "", "7")
