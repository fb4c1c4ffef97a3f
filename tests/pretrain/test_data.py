"""Problems as training examples."""

import pytest

from ollm_rl.options.model import IGNORED
from ollm_rl.pretrain.data import PadRight, completion_text, encode_examples
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
