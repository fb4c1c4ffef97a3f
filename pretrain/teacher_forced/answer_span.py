"""Where a completion states its final answer: in characters, and which of its tokens these are.

Letters: N tokens.
"""

from transformers import PreTrainedTokenizerBase

from ollm_rl.answers.pool import extract_answer
from ollm_rl.errors import UsageError


def answer_span(text: str) -> tuple[int, int] | None:
    r"""First and one past the last character of the stated answer; None where there is none.

    What follows ``####``, the content of ``\boxed{}``, or the x of "the answer is x", as ``extract_answer`` finds it.
    It is the last place that holds the answer's text and without which the answer is no longer stated: in "The answer
    is 7. So 17 were sold." the first 7.
    """
    found = extract_answer(text)
    if found is None or found[1] == "last_number":
        return None
    answer = found[0]
    start = text.rfind(answer)
    while start >= 0 and extract_answer(text[:start]) == found:
        start = text.rfind(answer, 0, start)
    return None if start < 0 else (start, start + len(answer))


def answer_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Indices of the tokens of ``text`` that overlap the stated answer; empty where none is stated.

    Raises:
        UsageError: If the tokenizer does not know its tokens' places in the text.
    """
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise UsageError(f"{name} gives no character offsets; teacher forcing needs a fast tokenizer")
    span = answer_span(text)
    if span is None:
        return []
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    return [index for index, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]
