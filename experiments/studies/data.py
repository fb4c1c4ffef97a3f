"""The problems that the SmolLM2 studies need, from where they are published, as JSON Lines.

python -m ollm_rl.experiments.studies.data DATA

DATA gets gsm8k_train.jsonl and gsm8k_dev.jsonl (660 of the test problems of GSM8K, Cobbe et al. 2021),
word_problems_train.jsonl and word_problems_dev.jsonl (1,488 and 300 of SVAMP, MultiArith and SingleEq), mgsm_dev.jsonl
(125 problems in 11 languages, MGSM, Shi et al. 2022) and mgsm_exemplars.jsonl. Files that are there stay as they are.
What is drawn is drawn with seed 0. The numbers in ``experiments/results`` are of another draw of the same sizes.
"""

import argparse
import ast
import csv
import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ollm_rl.errors import UsageError
from ollm_rl.experiments.script import start
from ollm_rl.problems.sources import load_problems
from ollm_rl.runs import write_atomic

GSM8K = "hf:openai/gsm8k:main"
GITHUB = "https://raw.githubusercontent.com"
SVAMP = "arkilpatel/SVAMP/main/SVAMP.json"
EQUATIONS = {  # copies of two data sets of MAWPS (Koncel-Kedziorski et al. 2016)
    "multiarith": "kojima-takeshi188/zero_shot_cot/main/dataset/MultiArith/MultiArith.json",
    "singleeq": "kojima-takeshi188/zero_shot_cot/main/dataset/SingleEq/questions.json",
}
MGSM = "google-research/url-nlp/main/mgsm"
LANGUAGES = ("en", "es", "fr", "de", "ru", "zh", "ja", "th", "sw", "bn", "te")
TIMEOUT = 60.0  # seconds
SIZES = {"gsm8k_dev": 660, "word_problems_train": 1488, "word_problems_dev": 300, "mgsm_dev": 125}

Row = dict[str, Any]


def read(path: str) -> str:
    """A file of GitHub.

    Raises:
        UsageError: If it cannot be read.
    """
    url = f"{GITHUB}/{path}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            return str(answer.read().decode())
    except OSError as error:
        raise UsageError(f"{url} cannot be read ({error}); run this again with a network") from error


def drawn(rows: list[Row], count: int) -> list[Row]:
    """Some of the rows, in random order."""
    return [rows[index] for index in np.random.default_rng(0).permutation(len(rows))[:count]]


def gsm8k(split: str) -> list[Row]:
    """GSM8K with its human solutions, without the marks of the calculator."""
    return [
        {"id": f"gsm8k-{split}-{number}", "source": "gsm8k"}
        | _texts(problem.question, re.sub("<<.*?>>", "", problem.solution), problem.answer)
        for number, problem in enumerate(load_problems(GSM8K, split=split))
    ]


def word_problems() -> list[Row]:
    """SVAMP, MultiArith and SingleEq, whose solutions are equations."""
    rows = [
        {"id": row["ID"], "source": "svamp"}
        | _texts(f"{_sentence(row['Body'])} {row['Question']}", row["Equation"], row["Answer"])
        for row in json.loads(read(SVAMP))
    ]
    for name, path in EQUATIONS.items():
        for row in json.loads(read(path)):
            texts = _texts(row["sQuestion"], row["lEquations"][0], row["lSolutions"][0])
            rows.append({"id": f"{name}-{row['iIndex']}", "source": name, **texts})
    return rows


def mgsm() -> Iterator[Row]:
    """Some problems of MGSM, the same ones in every language."""
    for language in LANGUAGES:
        lines = csv.reader(
            read(f"{MGSM}/mgsm_{language}.tsv").strip().split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE
        )
        rows = [
            {"id": f"mgsm-{language}-{number}", "source": "mgsm", **_texts(question, "", answer), "lang": language}
            for number, (question, answer) in enumerate(lines)
        ]
        yield from drawn(rows, SIZES["mgsm_dev"])


def exemplars() -> Iterator[Row]:
    """The worked examples of MGSM in every language."""
    values = {
        target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(read(f"{MGSM}/exemplars.py")).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    for language, examples in values["MGSM_EXEMPLARS"].items():
        for (number, example), answer in zip(examples.items(), values["EXEMPLAR_NUMBER_ANSWERS"], strict=True):
            texts = _texts(example["q"], example["a"], answer)
            yield {"id": f"mgsm-exemplar-{language}-{number}", "source": "mgsm-exemplar", **texts, "lang": language}


def _texts(question: str, solution: str, answer: object) -> Row:
    """Numbers are written as whole ones if they are."""
    text = f"{answer:g}" if isinstance(answer, float) and answer.is_integer() else str(answer)
    return {"question": question.strip(), "solution": solution.strip(), "answer": text.strip()}


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", ",", "!", "?")) else f"{text}."


def write(folder: Path, names: tuple[str, ...], make: Callable[[], dict[str, list[Row]]]) -> None:
    """Write those of some files, made together, that are missing."""
    missing = [name for name in names if not (folder / f"{name}.jsonl").exists()]
    made = make() if missing else {}
    for name in missing:
        write_atomic(
            folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made[name])
        )


def split_words() -> dict[str, list[Row]]:
    """Word problems to train on and others."""
    dev, train = SIZES["word_problems_dev"], SIZES["word_problems_train"]
    rows = drawn(word_problems(), dev + train)
    return {"word_problems_dev": rows[:dev], "word_problems_train": rows[dev:]}


def main() -> None:
    """Write what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the files")
    folder = parser.parse_args().data
    parts: dict[tuple[str, ...], Callable[[], dict[str, list[Row]]]] = {
        ("gsm8k_train",): lambda: {"gsm8k_train": gsm8k("train")},
        ("gsm8k_dev",): lambda: {"gsm8k_dev": drawn(gsm8k("test"), SIZES["gsm8k_dev"])},
        ("word_problems_train", "word_problems_dev"): split_words,
        ("mgsm_dev",): lambda: {"mgsm_dev": list(mgsm())},
        ("mgsm_exemplars",): lambda: {"mgsm_exemplars": list(exemplars())},
    }
    for names, make in (bar := tqdm(parts.items())):
        bar.set_description(", ".join(names))
        write(folder, names, make)
    print(f"problems in {folder}; next: experiments/studies/smollm2_human_styles.sh {folder} OUT")


if __name__ == "__main__":
    start(main)
