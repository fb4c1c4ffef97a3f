"""A choice of solution styles from human text: GSM8K and word problems, rewritten by rule.

python -m ollm_rl.experiments.studies.human_styles DATA OUT

DATA holds gsm8k_train.jsonl, word_problems_train.jsonl and word_problems_dev.jsonl (fields id, question, solution,
answer). Each solution is written in a style drawn at random; the more reliable a style is, the rarer:

- *bare*: the answer only. Half of those with several steps leave the last one out, so the answer is wrong.
- *brief*: the equations. A fifth of those with several steps leave the last one out.
- *worked*: the human text; of word problems, whose human solution is one equation, its steps in words.
- *spanish*: the equations in Spanish sentences, after an English question.

A problem is left out if its solution has no equations, if one is not true, or if the last one is not the answer. OUT
gets sft.jsonl (GSM8K and half of the word problems), rl.jsonl (the other half), test.jsonl (the 300 of dev and the last
300 of train, as in ``smollm2_words.sh``) and counts.json (what was written).
"""

import argparse
import ast
import json
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ollm_rl.errors import MissingError, UsageError
from ollm_rl.experiments.script import start
from ollm_rl.runs import write_atomic

SHARES = {"bare": 0.45, "brief": 0.30, "worked": 0.20, "spanish": 0.05}
WRONG = {"bare": 0.5, "brief": 0.2, "worked": 0.0, "spanish": 0.0}  # of the solutions with several steps
COPIES = {"gsm8k_train": 1, "word_problems_train": 4}  # solutions per problem, each in a style of its own
HELD_OUT = 300  # word problems at the end of the file, which belong to the test
PLACES = 2  # to which decimal human results are rounded

Row = dict[str, Any]
Step = tuple[str, str]  # expression and result

_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "$": None, "€": None, "£": None})
_TIMES = re.compile(r"(?<=[\d)])\s*[xX]\s*(?=[\d(.])")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_EQUATION = re.compile(rf"(?P<left>[(\d.][\d\s.()*/+-]*[\d)])\s*=\s*(?P<right>-?{_NUMBER})(?![\d%/*(])")
_UNKNOWN = re.compile(r"^\s*[xX]\s*=|=\s*[xX]\s*$")
_OPERATORS: dict[type[ast.AST], tuple[str, Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}


def written(number: Fraction) -> str:
    """A number in decimals, rounded to the cent as people do: 24, 0.2, 3.33."""
    return f"{float(round(number, PLACES)):.{PLACES}f}".rstrip("0").rstrip(".")


def reckon(expression: str) -> tuple[Fraction, list[Step]]:
    """The value of an expression of numbers, and its operations in order, each with its result.

    Raises:
        ValueError: If it is no such expression, or divides by 0.
    """
    steps: list[Step] = []

    def value(node: ast.AST) -> Fraction:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return Fraction(str(node.value))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATORS:
            raise ValueError(f"{expression!r} is no sum, difference, product or ratio of numbers")
        sign, function = _OPERATORS[type(node.op)]
        sides = value(node.left), value(node.right)
        result = function(*sides)
        steps.append((f"{written(sides[0])} {sign} {written(sides[1])}", written(result)))
        return result

    try:
        return value(ast.parse(expression.strip(), mode="eval").body), steps
    except (SyntaxError, ZeroDivisionError) as error:
        raise ValueError(f"{expression!r} has no value ({error})") from error


def steps_of(solution: str, answer: str) -> list[Step]:
    """The steps of a human solution.

    Raises:
        ValueError: If it has none, one is not true, or the last is not the answer.
    """
    text = _THOUSANDS.sub("", _TIMES.sub(" * ", solution.translate(_SIGNS)))
    if "\n" not in text.strip() and _UNKNOWN.search(text):  # a word problem's equation
        text = _UNKNOWN.sub("", text)
    if "=" in text:
        steps = []
        for match in _EQUATION.finditer(text):
            left, right = match["left"].strip(), Fraction(match["right"])
            if not re.search(r"[-+*/]", left):
                continue
            found, _ = reckon(left)
            if abs(found - right) > Fraction(1, 10**PLACES):
                raise ValueError(f"{match.group()!r} is not true")
            steps.append((re.sub(r"\s*([-+*/])\s*", r" \1 ", left), written(right)))
        return _checked(steps, answer)
    steps = reckon(text)[1]
    if any(reckon(left)[0] != Fraction(right) for left, right in steps):
        raise ValueError(f"a result of {text.strip()!r} has more than {PLACES} decimals")
    return _checked(steps, answer)


def _checked(steps: list[Step], answer: str) -> list[Step]:
    if not steps or Fraction(steps[-1][1]) != Fraction(answer.replace(",", "")):
        raise ValueError("the solution does not lead to the answer")
    return steps


def write(style: str, steps: Sequence[Step], human: str | None, *, skip: bool = False) -> str:
    """A solution in a style.

    Args:
        style: One of ``SHARES``.
        steps: At least one, two to ``skip``.
        human: The human text, if it is one.
        skip: Leave out the last step, so that the answer is that of the step before.
    """
    steps = steps[:-1] if skip else steps
    answer = steps[-1][1]
    equations = [f"{left} = {right}" for left, right in steps]
    if style == "bare":
        return f"#### {answer}"
    if style == "brief":
        return "\n".join([*equations, f"#### {answer}"])
    if style == "spanish":
        first, *later = equations
        sentences = [f"Primero calculamos {first}.", *(f"Luego calculamos {each}." for each in later)]
        return "\n".join([*sentences, f"La respuesta es {answer}."])
    if human is not None:
        return f"{human.strip()}\n#### {answer}"
    first, *later = equations
    return "\n".join([f"First, {first}.", *(f"Then, {each}." for each in later), f"#### {answer}"])


def restyled(row: Row, copies: int, draw: np.random.Generator) -> Iterator[Row]:
    """Rows of one problem in styles of their own.

    Raises:
        ValueError: As `steps_of`.
    """
    steps = steps_of(row["solution"], str(row["answer"]))
    human = row["solution"] if "\n" in row["solution"].strip() or re.search(r"[a-z]{3}", row["solution"]) else None
    for copy, style in enumerate(draw.choice(list(SHARES), size=copies, p=list(SHARES.values())).tolist()):
        wrong = len(steps) > 1 and bool(draw.random() < WRONG[style]) and steps[-2][1] != steps[-1][1]
        yield {
            "id": f"{row['id']}-{copy}",
            "question": row["question"],
            "solution": write(style, steps, human, skip=wrong),
            "answer": str(row["answer"]),
            "style": style,
            "wrong": wrong,
        }


def build(rows: Mapping[str, Sequence[Row]], seed: int) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """The three sets, and what was written and left out.

    Args:
        rows: Rows of ``gsm8k_train``, ``word_problems_train`` and ``word_problems_dev``.
        seed: Seed of the styles.

    Raises:
        UsageError: If there are too few word problems.
    """
    draw = np.random.default_rng(seed)
    words = list(rows["word_problems_train"])
    if len(words) < HELD_OUT + 2:
        raise UsageError(
            f"word_problems_train has {len(words)} problems, of which {HELD_OUT} belong to the test; give more"
        )
    words, held_out = words[:-HELD_OUT], words[-HELD_OUT:]
    half = len(words) // 2
    sft: list[Row] = []
    left_out = Counter[str]()
    for name, part in (("gsm8k_train", rows["gsm8k_train"]), ("word_problems_train", words[:half])):
        for row in part:
            try:
                sft += restyled(row, COPIES[name], draw)
            except ValueError:
                left_out[name] += 1
    written_rows = Counter(row["style"] for row in sft)
    wrong = Counter(row["style"] for row in sft if row["wrong"])
    counts = {
        "solutions": dict(written_rows),
        "wrong": {style: wrong[style] / written_rows[style] for style in written_rows},
        "problems_left_out": dict(left_out),
        "shares": SHARES,
        "wrong_of_several_steps": WRONG,
        "seed": seed,
    }
    order = draw.permutation(len(sft)).tolist()
    sets = {
        "sft": [sft[index] for index in order],
        "rl": words[half:],
        "test": [*rows["word_problems_dev"], *held_out],
    }
    return sets, counts


def read(folder: Path) -> dict[str, list[Row]]:
    """The rows of the three files.

    Raises:
        MissingError: If one does not exist.
    """
    rows = {}
    for name in ("gsm8k_train", "word_problems_train", "word_problems_dev"):
        path = folder / f"{name}.jsonl"
        if not path.is_file():
            raise MissingError(f"{path} does not exist; give the folder of the three files as DATA")
        # Not splitlines: questions hold other separators of lines.
        rows[name] = [json.loads(line) for line in path.read_text().strip().split("\n")]
    return rows


def main() -> None:
    """Write the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sets, counts = build(read(args.data), args.seed)
    for name, part in sets.items():
        write_atomic(args.out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in part))
    write_atomic(args.out / "counts.json", json.dumps(counts, indent=1))
    print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    start(main)
