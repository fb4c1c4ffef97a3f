"""Where completions state their answer, in characters and in tokens."""

import pytest
from transformers import PreTrainedTokenizerBase

from ollm_rl.backbones.loading import load_tokenizer
from ollm_rl.pretrain.teacher_forced.answer_span import answer_span, answer_tokens
from tests.tiny_models import tiny_tokenizer


@pytest.mark.parametrize(
    ("text", "before", "answer"),
    [
        ("3 + 4 = 7.\n#### 7", "3 + 4 = 7.\n#### ", "7"),
        (r"So $x = \boxed{\frac{1}{2}}$.", r"So $x = \boxed{", r"\frac{1}{2}"),
        ("3 + 4 = 7. The answer is 7 apples.", "3 + 4 = 7. The answer is ", "7 apples"),
        ("Quedan 7. La respuesta es 7.", "Quedan 7. La respuesta es ", "7"),
        # The same text may occur after the statement.
        ("The answer is 7. So 17 were sold.", "The answer is ", "7"),
        (r"$\boxed{3}$ is valid since $3 < 6$.", r"$\boxed{", "3"),
        # Of two statements, the box counts.
        (r"The answer is 12, so \boxed{12}.", r"The answer is 12, so \boxed{", "12"),
    ],
)
def test_the_answer_is_found_where_it_is_stated(text: str, before: str, answer: str) -> None:
    assert answer_span(text) == (len(before), len(before) + len(answer))


@pytest.mark.parametrize("text", ["", "Nothing to say.", "3 + 4 = 7"])
def test_a_completion_that_states_no_answer_has_none(text: str) -> None:
    assert answer_span(text) is None
    assert answer_tokens(text, tiny_tokenizer()) == []


def test_with_one_token_a_byte_the_answer_has_as_many_tokens_as_bytes() -> None:
    assert answer_tokens("#### 72", tiny_tokenizer()) == [5, 6]
    assert answer_tokens(r"\boxed{72}.", tiny_tokenizer()) == [7, 8]
    assert answer_tokens("The answer is 72.", tiny_tokenizer()) == [14, 15]
    # "é" has two bytes and one character.
    assert answer_tokens("é\n#### é", tiny_tokenizer()) == [8, 9]


@pytest.mark.parametrize(
    "text",
    ["3 + 14 = 17\n#### 17", r"3 + 14 = 17, so \boxed{17}", "3 + 14 = 17. The answer is 17.", "La respuesta es 17."],
)
def test_longer_tokens_that_overlap_the_answer_are_its_tokens(text: str) -> None:
    tokenizer: PreTrainedTokenizerBase = load_tokenizer("tiny-arith")
    ids = tokenizer(text, add_special_tokens=False).input_ids
    found = answer_tokens(text, tokenizer)
    assert found == list(range(found[0], found[-1] + 1))
    assert tokenizer.decode(ids[found[0] : found[-1] + 1]).strip() == "17"
    assert "17" not in tokenizer.decode(ids[found[-1] + 1 :])


def test_a_tokenizer_without_offsets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="gives no character offsets; teacher forcing needs a fast tokenizer"):
        answer_tokens("#### 1", tokenizer)
