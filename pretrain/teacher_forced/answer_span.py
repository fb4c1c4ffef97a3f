"""Where a completion states its final answer, in characters and in tokens.

Letters: N tokens.
"""

from transformers import PreTrainedTokenizerBase

from ollm_rl.answers.pool import extract_answer
from ollm_rl.errors import UsageError


def answer_span(text: str) -> tuple[int, int] | None:
    r"""First character of the stated answer and one past its last; None if no answer is stated.

    The answer is the text after ``####``, the content of ``\boxed{}``, or the x of "the answer is x", as
    ``extract_answer`` finds it. The span is the last occurrence of the answer's text before which the answer is not yet
    stated: in "The answer is 7. So 17 were sold." it is the first 7.
    """
    extracted = extract_answer(text)
    if extracted is None or extracted[1] == "last_number":
        return None
    answer = extracted[0]
    start = text.rfind(answer)
    while start >= 0 and extract_answer(text[:start]) == extracted:
        start = text.rfind(answer, 0, start)
    return None if start < 0 else (start, start + len(answer))


def answer_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Indices of the tokens of ``text`` that overlap the stated answer; empty if none is stated.

    Raises:
        UsageError: If the tokenizer gives no character offsets.
    """
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise UsageError(f"{name} gives no character offsets; teacher forcing needs a fast tokenizer")
    span = answer_span(text)
    if span is None:
        return []
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    return [index for index, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]
