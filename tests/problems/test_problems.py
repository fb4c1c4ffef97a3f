"""Problems from every kind of source, and the messages for broken sources."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from ollm_rl.problems import Problem, exclude_questions, load_problems
from tests.places import ROOT


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
        "import sys, ollm_rl.problems.sources\n"
        "assert not {'torch', 'datasets', 'transformers', 'reasoning_gym'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_arith_splits_of_one_seed_share_no_stream() -> None:
    questions: set[str] = set()
    for split in ("train", "validation", "test"):
        problems = load_problems("arith", split=split, limit=50, seed=3)
        assert problems == load_problems("arith", split=split, limit=60, seed=3)[:50]
        assert {problem.language for problem in problems} == {"en", "es"}
        assert len({problem.id for problem in problems}) == 50
        questions |= {problem.question for problem in problems}
    assert len(questions) > 140


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


def test_an_unknown_reasoning_gym_task_gets_the_close_names() -> None:
    pytest.importorskip("reasoning_gym")
    assert "chain_sum" in message_of("rg:chain_sums")
    assert "rg:rubiks_cube" in message_of("rg:rubiks_cube", limit=2)  # its entries have no reference answer
    assert "rg:composite" in message_of("rg:composite", limit=2)  # needs a list of datasets


def test_missing_reasoning_gym_gets_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
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
    first = load_problems("hf:openai/gsm8k")[:1]
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


@pytest.mark.parametrize(
    "folder",
    ["hendrycks/competition_math", "EleutherAI/hendrycks_math", "DigitalLearningGmbH/MATH-lighteval", "someone/boxed"],
)
def test_answers_of_math_are_the_last_box_of_their_solutions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    worked = r"Not $\boxed{2}$: half, $\boxed{\frac{1}{2}}$."
    write_rows(
        tmp_path / folder / "train.jsonl",
        {"problem": "Half of 1?", "level": "Level 1", "type": "Algebra", "solution": worked},
        {"problem": "Prove it.", "level": "Level 5", "type": "Algebra", "solution": "The answer is 3. #"},
    )
    expected = Problem(
        id=f"{folder}-train-0", question="Half of 1?", solution=worked, answer=r"\frac{1}{2}", language="en"
    )
    with caplog.at_level(logging.WARNING):
        assert load_problems(f"hf:{folder}") == [expected]
    assert "1 of 2 rows lack a question or an answer" in caplog.text


def test_a_column_of_answers_wins_over_a_box(tmp_path: Path) -> None:
    write_rows(tmp_path / "both/train.jsonl", {"problem": "q", "solution": r"\boxed{1}", "answer": "2"})
    assert [problem.answer for problem in load_problems(f"hf:{tmp_path / 'both'}")] == ["2"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_that_are_no_problems_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    rows = [{"question": f"q{index}", "answer": None if index in (1, 4) else f"a{index}"} for index in range(6)]
    path = tmp_path / f"gaps/train.{suffix}"
    if suffix == "jsonl":
        write_rows(path, *rows)
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    spec = f"hf:{tmp_path / 'gaps'}"
    with caplog.at_level(logging.WARNING):
        every = load_problems(spec)
    assert [problem.answer for problem in every] == ["a0", "a2", "a3", "a5"]
    assert "2 of 6 rows" in caplog.text
    for limit in (1, 2, 4, 9):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            sample = load_problems(spec, limit=limit)
        assert len(sample) == min(limit, 4) and [problem for problem in every if problem in sample] == sample
        assert "2 of 6 rows" in caplog.text


def test_a_broken_file_of_a_data_set_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    write_rows(folder / "train-0.jsonl", *({"question": f"q{index}", "answer": index} for index in range(3)))
    (folder / "train-1.jsonl").write_text("{broken")
    assert "cannot be loaded" in message_of(f"hf:{folder}", limit=3)
    assert "cannot be loaded" in message_of(f"hf:{folder}")


def test_a_slice_of_a_split_takes_a_limit_too(tmp_path: Path) -> None:
    write_rows(tmp_path / "set/train.jsonl", *({"question": f"q{index}", "answer": "a"} for index in range(4)))
    problems = load_problems(f"hf:{tmp_path / 'set'}", split="train[1:]", limit=2)
    assert len(problems) == 2 and {problem.question for problem in problems} < {"q1", "q2", "q3"}
    assert len(load_problems(f"hf:{tmp_path / 'set'}", split="train[1:]")) == 3


@pytest.mark.parametrize("limit", [None, 1])
def test_datasets_without_a_usable_row_are_named(tmp_path: Path, limit: int | None) -> None:
    write_rows(tmp_path / "unanswered/train.jsonl", {"question": "q", "answer": None})
    assert "holds no problems" in message_of(f"hf:{tmp_path / 'unanswered'}", limit=limit)
    write_rows(tmp_path / "empty/train.jsonl")
    assert "cannot be loaded" in message_of(f"hf:{tmp_path / 'empty'}", limit=limit)


@pytest.mark.parametrize("limit", [None, 1])
def test_datasets_that_cannot_be_read_are_named_with_the_reason(tmp_path: Path, limit: int | None) -> None:
    write_rows(tmp_path / "odd/train.jsonl", {"prompt": "q", "target": "a"})
    message = message_of(f"hf:{tmp_path / 'odd'}", limit=limit)
    assert "prompt, target" in message and "question" in message
    assert "split='test'" in message_of(f"hf:{tmp_path / 'odd'}", split="test", limit=limit)
    assert "harder" in message_of(f"hf:{tmp_path / 'odd'}:harder", limit=limit)
    assert "absent" in message_of(f"hf:{tmp_path / 'absent'}", limit=limit)


def asked(question: str) -> Problem:
    return Problem(id=question, question=question, solution="", answer="a", language="en")


@pytest.mark.parametrize(
    "other",
    [
        "ANN's bag “A” holds 12 pens, and 1.5 l of ink. How many?",  # case and full stop of another wording
        '  Ann\'s bag "A"\tholds 12 pens and\n1.5 l of ink; how  many? ',  # spaces, line breaks, punctuation
        "Ann’s bag “A” holds 12 pens, and 1.5 l of ink: how many",  # curly quotes
        'Ann\'s bag "A" holds １２ pens, and １．５ l of ink: how many？',  # full-width digits and signs
    ],
)
def test_a_held_out_question_is_recognised_in_another_typography(other: str) -> None:
    held_out = [asked('Ann\'s bag "A" holds 12 pens, and 1.5 l of ink: how many?')]
    kept = [asked("How many pens?"), asked("How many bags?")]
    assert exclude_questions([kept[0], asked(other), kept[1], asked(other)], held_out) == kept


@pytest.mark.parametrize(
    ("question", "held_out"),
    [
        ("Ann has 12 pens.", "Ann has 13 pens."),  # one digit
        ("What is 1.5 + 2?", "What is 15 + 2?"),  # the point of a number
        ("What is 1 2?", "What is 12?"),
        ("What is 4 - 3?", "What is 4 + 3?"),
        ("What is 4 * 3?", "What is 4 / 3?"),
        ("What is 5!?", "What is 5?"),  # a factorial
        ("Find $f'(2)$.", "Find $f(2)$."),  # a derivative
    ],
)
def test_questions_that_differ_in_a_digit_or_a_sign_stay(question: str, held_out: str) -> None:
    assert exclude_questions([asked(question)], [asked(held_out)]) == [asked(question)]
    assert exclude_questions([asked(held_out)], [asked(question)]) == [asked(held_out)]
    assert exclude_questions([asked(question)], [asked(held_out), asked(question)]) == []


@pytest.mark.parametrize("spec", ["gsm8k", "csv:a.csv", "", "arith:5", "jsonl:", "rg:", "hf"])
def test_an_unknown_source_gets_the_four_forms(spec: str) -> None:
    message = message_of(spec)
    for form in ("arith", "rg:TASK", "jsonl:PATH", "hf:ID", repr(spec)):
        assert form in message


def test_limits_and_splits_without_meaning_are_refused() -> None:
    assert "limit=0" in message_of("arith", limit=0)
    assert "split='dev'" in message_of("arith", split="dev")


def test_lines_with_the_same_id_are_named_together(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    rows = [{"id": name, "question": "q", "answer": 1} for name in ("a", "b", "a")]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    assert message_of(f"jsonl:{path}").endswith("sums.jsonl, lines 1 and 5: both have the id 'a'; change one")
    # A line without an id is named by the file and its number.
    path.write_text('{"id": "sums-2", "question": "q", "answer": 1}\n{"question": "q", "answer": 1}')
    assert "lines 1 and 2: both have the id 'sums-2'" in message_of(f"jsonl:{path}")


@pytest.mark.parametrize("field", ["question", "answer", "solution", "id"])
def test_half_a_character_is_named_with_its_line_and_field(tmp_path: Path, field: str) -> None:
    path = tmp_path / "broken.jsonl"
    row = {"question": "q", "answer": "1", "solution": "#### 1", "id": "x", field: "a\ud800b"}
    path.write_text(json.dumps({"question": "q", "answer": 1}) + "\n" + json.dumps(row))
    message = message_of(f"jsonl:{path}")
    assert f"broken.jsonl, line 2: field '{field}' has a lone surrogate ('a\\ud800b'), half a character" in message
