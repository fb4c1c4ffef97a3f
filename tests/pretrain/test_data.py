"""Problems as training examples."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.options.model import IGNORED
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.data import PadRight, completion_text, encode_examples, solved_problems
from ollm_rl.pretrain.sft import with_steps
from ollm_rl.problems import Problem
from tests.pretrain.test_sft import problem
from tests.tiny_models import EOS, tiny_tokenizer


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("3 and 4 make 7.\n#### 7", "3 and 4 make 7.\n#### 7"),
        ("The answer is 7.", "The answer is 7."),
        (r"It is \boxed{7}", r"It is \boxed{7}"),
        ("3 and 4 make 7", "3 and 4 make 7\n#### 7"),
        ("#### Step 1\nAdd 3 and 4.\n\nSo there are 7.", "#### Step 1\nAdd 3 and 4.\n\nSo there are 7.\n#### 7"),
        ("", "#### 7"),
    ],
)
def test_a_completion_states_its_answer_once(solution: str, expected: str) -> None:
    assert completion_text(problem("3+4?", solution, "7")) == expected


def test_the_loss_counts_only_the_completion_and_its_end() -> None:
    tokenizer = tiny_tokenizer()
    one, two = encode_examples([problem("ab", "#### 7", "7"), problem("c", "#### 12", "12")], tokenizer, max_length=9)
    prompt, completion = tokenizer("ab\n").input_ids, tokenizer("#### 7").input_ids
    assert one["input_ids"] == [*prompt, *completion]  # the ninth token is the last: the end is cut
    assert one["labels"] == [IGNORED] * 3 + completion
    assert two["input_ids"][2:] == [*tokenizer("#### 12").input_ids][:7]
    (whole,) = encode_examples([problem("ab", "#### 7", "7")], tokenizer, max_length=10)
    assert whole["input_ids"][-1] == whole["labels"][-1] == EOS


def test_a_prompt_that_fills_the_context_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"the prompt of problem 'abcdef' has 7 tokens and leaves no room for 1 more within 7"
    ):
        encode_examples([problem("abcdef", "#### 1", "1")], tiny_tokenizer(), max_length=7)


def test_rows_are_padded_on_the_right_with_labels_that_do_not_count() -> None:
    batch = PadRight(9)([{"input_ids": [1, 2, 3], "labels": [IGNORED, 2, 3]}, {"input_ids": [4], "labels": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3], [4, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def solutions(*lengths: int) -> list[Problem]:
    """Problems whose prompt, completion and end together have these lengths in tokens."""
    return [problem("q", "#### 1" + "1" * (length - 9), "1") for length in lengths]


def test_solutions_that_are_cut_are_counted_and_above_one_percent_the_length_that_holds_them_is_named(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    encode_examples(solutions(*[12] * 200), tiny_tokenizer(), max_length=12)
    assert not capsys.readouterr().out and not caplog.text
    examples = encode_examples(solutions(*[12] * 198, 20, 30), tiny_tokenizer(), max_length=12)
    assert max(len(example["input_ids"]) for example in examples) == 12
    said = "2 of 200 solutions (1.0%) are cut at 12 tokens of prompt and completion"
    assert capsys.readouterr().out == f"{said}\n" and not caplog.text
    encode_examples(solutions(*[12] * 197, 20, 30, 40), tiny_tokenizer(), max_length=12, context=30)
    # 198 of 200 are 99 %, and the longest of those has 20 tokens.
    assert "3 of 200 solutions (1.5%) are cut at 12 tokens" in caplog.text
    assert caplog.text.rstrip().endswith("a max_length of 20 would hold 99 %")
    encode_examples(solutions(*[40] * 64), tiny_tokenizer(), max_length=12, context=30)
    assert "64 of 64 solutions (100.0%) are cut at 12 tokens" in caplog.text
    assert "a max_length of 40 would hold 99 %, but the backbone reads at most 30: use shorter solutions" in caplog.text


@pytest.mark.parametrize(("epochs", "steps"), [(1, 5), (2, 10), (0.5, 3), (None, 300)])
def test_epochs_are_passes_over_all_solutions(tmp_path: Path, epochs: float | None, steps: int) -> None:
    # 36 solutions are four batches of 8 and one of 4.
    config = with_steps(SFTConfig(out=tmp_path, batch_size=8, epochs=epochs), 36)
    assert (config.max_steps, config.epochs) == (steps, None)
    assert with_steps(config, 36) == config


def test_training_data_and_held_out_questions_have_splits_and_columns_of_their_own(tmp_path: Path) -> None:
    for path, field, questions in (
        ("own/cot.jsonl", "task", "abc"),
        ("own/tir.jsonl", "task", "xyz"),
        ("theirs/test.jsonl", "ask", "bxy"),
        ("theirs/dev.jsonl", "ask", "a"),
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        rows = [{field: question, "trace": "#### 1"} for question in questions]
        (tmp_path / path).write_text("\n".join(map(json.dumps, rows)))
    # Files that are not named train, test or dev are splits where the folder's card says so.
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in ("cot", "tir"))
    (tmp_path / "own/README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")

    def questions_of(**changes: str) -> str:
        own: dict[str, Any] = {"data": f"hf:{tmp_path}/own", "split": "cot", "columns": "question=task,solution=trace"}
        return "".join(problem.question for problem in solved_problems(SFTConfig(out=tmp_path, **(own | changes))))

    theirs = {"held_out": f"hf:{tmp_path}/theirs", "held_out_columns": "question=ask,answer=trace"}
    assert questions_of() == "abc"
    assert questions_of(split="tir") == "xyz"
    assert questions_of(**theirs) == "ac"  # without the b of the test split
    assert questions_of(**theirs, held_out_split="validation") == "bc"


def test_settings_of_what_is_not_given_are_refused(tmp_path: Path) -> None:
    for changes, message in (
        ({"held_out_split": "exam"}, "held_out_split=exam is not used without held_out; leave it out"),
        ({"held_out_columns": "question=a,answer=b"}, "held_out_columns=question=a,answer=b is not used without held_"),
        ({"epochs": 2.0, "max_steps": 7}, "max_steps=7 is not used with epochs=2; leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            SFTConfig(out=tmp_path, **changes)  # type: ignore[arg-type]
