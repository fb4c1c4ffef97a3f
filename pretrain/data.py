"""Problems as training examples: prompt and completion tokens, with a loss on the completion only.

Letters: B batch, T tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ollm_rl.answers.pool import extract_answer
from ollm_rl.options.model import IGNORED
from ollm_rl.problems.prompts import encode_prompts
from ollm_rl.problems.sources import Problem


def completion_text(problem: Problem) -> str:
    """The worked solution, with ``#### answer`` appended, as in GSM8K, if it does not state its answer."""
    extracted = extract_answer(problem.solution)
    if extracted is not None and extracted[1] != "last_number":
        return problem.solution
    return f"{problem.solution}\n#### {problem.answer}".lstrip()


def encode_examples(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> list[dict[str, list[int]]]:
    """Tokenise problems to ``input_ids`` and ``labels`` of prompt, completion and the end-of-text token.

    Raises:
        ValueError: If a prompt without its completion is as long as ``max_length``.
    """
    prompts = encode_prompts(problems, tokenizer, max_length=max_length)
    texts = [completion_text(problem) for problem in problems]
    examples = []
    for prompt, completion in zip(prompts, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
        ids = [*prompt, *completion, tokenizer.eos_token_id]
        labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
        examples.append({"input_ids": ids[:max_length], "labels": labels[:max_length]})
    return examples


class PadRight:
    """Collate examples to (B, T) tensors ``input_ids``, ``labels`` and ``attention_mask``, padded on the right."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad to the longest example of the batch."""

        def pad(name: str, value: int) -> torch.Tensor:
            rows = [torch.tensor(example[name]) for example in examples]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        input_ids = pad("input_ids", self.pad_token_id)
        attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        return {"input_ids": input_ids, "labels": pad("labels", IGNORED), "attention_mask": attention_mask}
