"""The problems of the studies, from files of the same form as those that are published."""

import json
import sys
from pathlib import Path

import pytest

from ollm_rl.errors import UsageError
from ollm_rl.experiments.studies import data
from ollm_rl.problems.sources import load_problems

SVAMP = [
    {
        "ID": f"chal-{n}",
        "Body": f"There are {n} pots",
        "Question": "How many?",
        "Equation": f"( {n}.0 )",
        "Answer": n * 1.0,
    }
    for n in range(9)
]
EQUATION = {
    "iIndex": 3,
    "sQuestion": " It rained 0.2 and 0.4. How much? ",
    "lEquations": ["0.2 + 0.4 = x"],
    "lSolutions": [0.6],
}
EXEMPLARS = """EXEMPLAR_NUMBER_ANSWERS = [11, 29]
MGSM_EXEMPLARS = {
    "de": {"1": {"q": "Frage: Wie "
                      "viele?", "a": "Antwort: 5 + 6 = 11."}, "2": {"q": "Frage: Und nun?", "a": "Antwort: 29."}},
}
"""


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of GitHub and of the hub."""
    files = {
        data.SVAMP: json.dumps(SVAMP),
        **{path: json.dumps([EQUATION]) for path in data.EQUATIONS.values()},
        f"{data.MGSM}/exemplars.py": EXEMPLARS,
        **{
            f"{data.MGSM}/mgsm_{language}.tsv": "".join(f'"{language}" {n}?\t{n},000\n' for n in range(250))
            for language in data.LANGUAGES
        },
    }
    for name, text in files.items():
        (tmp_path / "github" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "github" / name).write_text(text)
    (tmp_path / "openai/gsm8k").mkdir(parents=True)
    for split in ("train", "test"):
        rows = [
            {"question": f"{split} {n}?", "answer": f"It is 1+{n}=<<1+{n}={n + 1}>>{n + 1}.\n#### {n + 1}"}
            for n in range(3)
        ]
        (tmp_path / f"openai/gsm8k/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)  # a relative folder is taken before the hub
    monkeypatch.setattr(data, "GSM8K", "hf:openai/gsm8k")
    monkeypatch.setattr(data, "GITHUB", f"file://{tmp_path}/github")
    monkeypatch.setattr(
        data, "SIZES", {"gsm8k_dev": 2, "word_problems_train": 7, "word_problems_dev": 3, "mgsm_dev": 5}
    )
    monkeypatch.setattr(sys, "argv", ["data", "out"])
    return tmp_path


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(f"out/{name}.jsonl").read_text().splitlines()]


def test_every_file_of_the_studies_is_written_and_can_be_loaded(published: Path) -> None:
    data.main()
    assert rows("gsm8k_train")[1] == {
        "id": "gsm8k-train-1",
        "source": "gsm8k",
        "question": "train 1?",
        "solution": "It is 1+1=2.",
        "answer": "2",
    }
    assert len({row["id"] for row in rows("gsm8k_dev")}) == 2
    words = rows("word_problems_train"), rows("word_problems_dev")
    assert [len(part) for part in words] == [7, 3] and len({row["id"] for part in words for row in part}) == 10
    by_source = {row["source"]: row for part in words for row in part}
    number = by_source["svamp"]["id"].removeprefix("chal-")
    assert by_source["svamp"]["question"] == f"There are {number} pots. How many?"
    assert by_source["svamp"]["answer"] == number and by_source["svamp"]["solution"] == f"( {number}.0 )"
    equation = by_source.get("multiarith") or by_source["singleeq"]
    assert equation["question"] == "It rained 0.2 and 0.4. How much?"
    assert (equation["solution"], equation["answer"]) == ("0.2 + 0.4 = x", "0.6")
    problems = rows("mgsm_dev")
    by_language = {language: [row for row in problems if row["lang"] == language] for language in data.LANGUAGES}
    numbers = {tuple(row["id"].rsplit("-", 1)[1] for row in of) for of in by_language.values()}
    assert len(numbers) == 1 and len(numbers.pop()) == 5, "the same problems in every language"
    assert by_language["sw"][0]["question"].startswith('"sw" ') and by_language["sw"][0]["answer"].endswith(",000")
    assert rows("mgsm_exemplars")[0] == {
        "id": "mgsm-exemplar-de-1",
        "source": "mgsm-exemplar",
        "question": "Frage: Wie viele?",
        "solution": "Antwort: 5 + 6 = 11.",
        "answer": "11",
        "lang": "de",
    }
    assert load_problems("jsonl:out/mgsm_exemplars.jsonl")[1].language == "de"


def test_files_that_are_there_stay_and_others_are_drawn_alike(published: Path) -> None:
    data.main()
    first = {path.name: path.read_text() for path in Path("out").iterdir()}
    Path("out/word_problems_dev.jsonl").unlink()
    Path("out/mgsm_dev.jsonl").write_text("mine\n")
    data.main()
    assert {path.name: path.read_text() for path in Path("out").iterdir()} == first | {"mgsm_dev.jsonl": "mine\n"}


def test_without_a_network_one_line_names_the_file_and_what_is_done_stays(published: Path) -> None:
    (published / "github" / data.SVAMP).unlink()
    with pytest.raises(UsageError, match=r"SVAMP\.json cannot be read \(.*\); run this again with a network"):
        data.main()
    assert {path.name for path in Path("out").iterdir()} == {"gsm8k_train.jsonl", "gsm8k_dev.jsonl"}
