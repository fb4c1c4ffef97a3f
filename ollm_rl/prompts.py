"""The prompt of a problem, the same in training, environments, agents and evaluation."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ollm_rl.problems import Problem


def prompt_text(problem: Problem) -> str:
    """The question and a line break; the completion follows."""
    return f"{problem.question}\n"


def encode_prompts(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, *, max_length: int, max_new_tokens: int = 1
) -> list[list[int]]:
    """Token ids of every prompt.

    Args:
        problems: At least one.
        tokenizer: Of the backbone.
        max_length: Tokens that prompt and completion share.
        max_new_tokens: Tokens of these that the completion may need.

    Raises:
        ValueError: If a prompt leaves no room for the completion; names the problem.
    """
    prompts: list[list[int]] = tokenizer([prompt_text(problem) for problem in problems]).input_ids
    for problem, prompt in zip(problems, prompts, strict=True):
        if len(prompt) + max_new_tokens > max_length:
            raise ValueError(
                f"the prompt of problem {problem.id!r} has {len(prompt)} tokens and leaves no room for "
                f"{max_new_tokens} more within {max_length}; leave it out, lower max_new_tokens or raise max_length"
            )
    return prompts
