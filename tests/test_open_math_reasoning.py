"""From a Qwen2, OpenMathReasoning and Omni-MATH on disk to the paper's table, by the documented commands only."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import datasets
import pytest

from ollm_rl.cli import main
from tests.places import ROOT
from tests.tiny_models import save_backbone

PAGE = (ROOT / "docs/architecture/problems.md").read_text()
CPU = "--device cpu"
OPTIONS = "--options.num_options 4 --options.width 8"
SMALLER = {
    "sft": f"--limit 12 --batch_size 4 --max_length 64 {CPU}",
    "train": f"--limit 8 --iterations 1 --episodes 8 --group_size 4 --minibatches 1 --max_new_tokens 4 {CPU}",
    "teacher-forced": CPU,
    "eval": f"--max_new_tokens 4 {CPU}",
}


def reasoning_row(a: int, b: int, *, solved: bool = True) -> dict[str, Any]:
    """A row with the columns of OpenMathReasoning."""
    return {
        "expected_answer": str(a + b),
        "problem_type": "has_answer_extracted",
        "problem_source": "aops_c4_high_school_math",
        "generation_model": "DeepSeek-R1" if solved else "n/a",
        "pass_rate_72b_tir": "0.5" if solved else "n/a",
        "problem": f"Find {a} + {b}.",
        "generated_solution": rf"<think>{a}+{b}</think> \boxed{{{a + b}}}" if solved else "n/a",
        "inference_mode": "cot" if solved else "n/a",
        "used_in_kaggle": solved,
    }


def omni_row(a: int, b: int) -> dict[str, Any]:
    """A row with the columns of Omni-MATH."""
    return {
        "domain": ["Mathematics -> Algebra -> Prealgebra"],
        "difficulty": 4.5,
        "problem": f"Find {a} + {b}.",
        "solution": f"It is {a} + {b} = {a + b}.",
        "answer": str(a + b),
        "source": "HMMT_2",
    }


def download(folder: Path) -> None:
    """Both data sets with few rows, laid out as on the hub."""
    for split, solved in (("cot", True), ("additional_problems", False)):
        rows = [reasoning_row(a, b, solved=solved) for a in range(1, 5) for b in range(1, 5)]
        path = folder / f"OpenMathReasoning/data/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(path)
    (folder / "Omni-MATH").mkdir()
    rows = [omni_row(1, 1), omni_row(9, 9), omni_row(8, 7)]
    (folder / "Omni-MATH/test.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_the_documented_commands_lead_to_the_papers_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_backbone(Path("models/qwen2"), "qwen2")
    download(Path("data"))
    (section,) = re.findall(r"## From OpenMathReasoning.*?```\n(.*?)```", PAGE, re.DOTALL)
    commands = [shlex.split(line)[1:] for line in section.splitlines()]
    assert [words[0] for words in commands] == ["sft", "sft", "train", "teacher-forced", "eval"]
    said = {}
    for words in commands:
        options = OPTIONS if words[0] == "sft" and "lora" not in words else ""
        assert main([*words, *shlex.split(SMALLER[words[0]]), *options.split()]) == 0
        said[words[0]] = capsys.readouterr().out
    # The sample of 12 may or may not hold the question that Omni-MATH has too.
    assert re.search(r"[01] of 12 problems are left out: hf:data/Omni-MATH has their questions", said["sft"])
    assert re.search(r"1 epochs of 1[12] solutions are 3 steps", said["sft"])
    for column in ("backbone", "lora", "oracle", "encoder", "policy"):
        assert column in said["teacher-forced"]
    rows = Path("runs/eval/results.md").read_text().splitlines()[2:]
    assert sorted(row.split(" | ")[0] for row in rows) == sorted(
        f"| {name}" for name in ("models/qwen2", "runs/latent", "runs/lora", "runs/options")
    )
    assert all("3 of hf:data/Omni-MATH" in row for row in rows)
