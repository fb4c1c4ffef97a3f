"""The prompt of a problem, the same in training, environments, agents and evaluation."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ollm_rl.errors import UsageError
from ollm_rl.problems.sources import Problem, is_text


def encode_prompts(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, *, max_length: int, max_new_tokens: int = 1
) -> list[list[int]]:
    """Token ids of every prompt, which is all of the text before the completion.

    With a chat template a prompt is the question as the user's message, followed by the start of the assistant's
    message. Without one it is the question and a line break.

    Args:
        problems: At least one.
        tokenizer: Tokenizer of the backbone.
        max_length: Maximum number of tokens of prompt and completion together.
        max_new_tokens: Number of tokens reserved for the completion.

    Raises:
        UsageError: If a prompt leaves no room for the completion, or is no text; the message names the problem.
    """
    for problem in problems:
        if not is_text(problem.question + problem.answer):
            raise UsageError(f"problem {problem.id!r} has a lone surrogate, half a character; correct it")
    prompts: list[list[int]]
    if tokenizer.chat_template is None:
        prompts = tokenizer([f"{problem.question}\n" for problem in problems]).input_ids
    else:  # the template writes the special tokens itself
        chats = [[{"role": "user", "content": problem.question}] for problem in problems]
        prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True).input_ids
    for problem, prompt in zip(problems, prompts, strict=True):
        if len(prompt) + max_new_tokens > max_length:
            raise UsageError(
                f"the prompt of problem {problem.id!r} has {len(prompt)} tokens and leaves no room for "
                f"{max_new_tokens} more within {max_length}; leave it out, lower max_new_tokens or raise max_length"
            )
    return prompts
