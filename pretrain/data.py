"""Problems as training examples: prompt and completion tokens, with a loss on the completion only.

Letters: B batch, T tokens.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ollm_rl.answers.pool import extract_answer
from ollm_rl.errors import UsageError
from ollm_rl.options.model import IGNORED
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.problems.held_out import exclude_questions
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.prompts import encode_prompts
from ollm_rl.problems.sources import load_problems

FEW = 0.01  # share of cut solutions above which a warning is due

logger = logging.getLogger(__name__)


def solved_problems(config: SFTConfig) -> list[Problem]:
    """The problems to train on: those with a worked solution whose question is not held out.

    Raises:
        UsageError: If none are left.
    """
    split = config.split or "train"
    problems = load_problems(config.data, split=split, columns=config.columns, limit=config.limit, seed=config.seed)
    solved = [problem for problem in problems if problem.solution]
    if not solved:
        raise UsageError(f"data {config.data!r} holds no worked solutions to train on; give problems with solutions")
    if config.held_out is None:
        return solved
    split = config.held_out_split or "test"
    held_out = load_problems(config.held_out, split=split, columns=config.held_out_columns, seed=config.seed)
    remaining = exclude_questions(solved, held_out)
    print(
        f"{len(solved) - len(remaining)} of {len(solved)} problems are left out: {config.held_out} has their questions"
    )
    if not remaining:
        raise UsageError(f"held_out={config.held_out!r} has all questions of {config.data!r}; give other problems")
    return remaining


def completion_text(problem: Problem) -> str:
    """The worked solution, with ``#### answer`` appended, as in GSM8K, if it does not state its answer."""
    extracted = extract_answer(problem.solution)
    if extracted is not None and extracted[1] != "last_number":
        return problem.solution
    return f"{problem.solution}\n#### {problem.answer}".lstrip()


def encode_examples(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, *, max_length: int, context: int | None = None
) -> list[dict[str, list[int]]]:
    """Tokenise problems to ``input_ids`` and ``labels`` of prompt, completion and the end-of-text token.

    What is longer than ``max_length`` is cut at its end, counted and printed; a warning if more than 1 % are cut.

    Args:
        problems: At least one.
        tokenizer: Tokenizer of the backbone.
        max_length: Maximum number of tokens of prompt and completion together.
        context: Number of tokens that the backbone can read, for the warning; ``max_length`` if left out.

    Raises:
        ValueError: If a prompt without its completion is as long as ``max_length``.
    """
    prompts = encode_prompts(problems, tokenizer, max_length=max_length)
    texts = [completion_text(problem) for problem in problems]
    examples, lengths = [], []
    for prompt, completion in zip(prompts, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
        ids = [*prompt, *completion, tokenizer.eos_token_id]
        labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
        examples.append({"input_ids": ids[:max_length], "labels": labels[:max_length]})
        lengths.append(len(ids))
    _say_cut(lengths, max_length, context or max_length)
    return examples


def _say_cut(lengths: Sequence[int], max_length: int, context: int) -> None:
    """Say how many solutions are cut, and which length would hold 99 % of them."""
    cut = sum(length > max_length for length in lengths)
    if not cut:
        return
    share = cut / len(lengths)
    said = f"{cut} of {len(lengths)} solutions ({share:.1%}) are cut at {max_length} tokens of prompt and completion"
    if share <= FEW:
        print(said)
        return
    enough = sorted(lengths)[math.ceil((1 - FEW) * len(lengths)) - 1]
    remedy = f"a max_length of {enough} would hold 99 %"
    if enough > context:
        remedy += f", but the backbone reads at most {context}: use shorter solutions"
    logger.warning("%s, so their ends and answers are missing; %s", said, remedy)


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
