"""The prompt of a problem, the same in training, environments, agents and evaluation."""

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ollm_rl.errors import UsageError, one_line
from ollm_rl.problems.problem import Problem, listed
from ollm_rl.settings import PromptSettings, is_text

PLACEHOLDER = "\ue000"  # for private use, so no question and no template has it
SYSTEM_PROMPT = "{#- system_prompt -#}"  # a comment in the template, after the system message


def encode_prompts(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, *, max_length: int, max_new_tokens: int = 1
) -> list[list[int]]:
    """Token ids of every prompt, which is all of the text before the completion.

    With a chat template a prompt is the question as the user's message, followed by the start of the assistant's
    message. Without one it is the question and a line break. A special token that a question spells stays text.

    Args:
        problems: At least one.
        tokenizer: Tokenizer of the backbone.
        max_length: Maximum number of tokens of prompt and completion together.
        max_new_tokens: Number of tokens reserved for the completion.

    Raises:
        UsageError: If a prompt leaves no room for the completion, or is no text, or the chat template refuses one; the
            message names the problem, or the tokenizer.
    """
    problems = listed(problems)
    for problem in problems:
        if not is_text(problem.question + problem.answer):
            raise UsageError(f"problem {problem.id!r} has a lone surrogate, half a character; correct it")
    questions = [problem.question for problem in problems]
    prompts = _plain(questions, tokenizer) if tokenizer.chat_template is None else _chats(questions, tokenizer)
    for problem, prompt in zip(problems, prompts, strict=True):
        if len(prompt) + max_new_tokens > max_length:
            raise UsageError(
                f"the prompt of problem {problem.id!r} has {len(prompt)} tokens and leaves no room for "
                f"{max_new_tokens} more within {max_length}; leave it out, lower max_new_tokens or raise max_length"
            )
    return prompts


def format_prompts(tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> None:
    """Set the tokenizer's chat template to what the settings ask for, if anything; it is saved with the tokenizer.

    Raises:
        UsageError: If there is a system prompt, but no chat template.
    """
    if settings.prompt_template is not None:
        before, after = settings.prompt_template.split("{question}")
        starts = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        parts = ["bos_token"] * starts + [ascii(before), "messages[-1].content", ascii(after)]
        tokenizer.chat_template = "".join(f"{{{{ {part} }}}}" for part in parts)
    elif settings.system_prompt is not None:
        if not isinstance(tokenizer.chat_template, str):
            raise UsageError(
                f"system_prompt={settings.system_prompt!r} needs one chat template, which {tokenizer.name_or_path!r} "
                "does not have; give prompt_template"
            )
        message = f"{{'role': 'system', 'content': {ascii(settings.system_prompt)}}}"
        template = tokenizer.chat_template.rpartition(SYSTEM_PROMPT)[2]  # without that of the run that is loaded
        tokenizer.chat_template = f"{{%- set messages = [{message}] + messages -%}}{SYSTEM_PROMPT}{template}"


def _plain(questions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    texts = [f"{question}\n" for question in questions]
    prompts: list[list[int]] = tokenizer(texts, split_special_tokens=True).input_ids
    ends = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    # Some tokenizers end every text; the completion still follows here.
    return [prompt[:-1] if len(prompt) > 1 and prompt[-1] in ends else prompt for prompt in prompts]


def _chats(questions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    chats = [[{"role": "user", "content": question}] for question in questions]
    try:  # the template writes the special tokens itself
        prompts: list[list[int]] = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_dict=True
        ).input_ids
        placeholder = [{"role": "user", "content": PLACEHOLDER}]
        around = tokenizer.apply_chat_template(placeholder, add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError) as error:
        raise UsageError(
            f"the chat template of {tokenizer.name_or_path!r} refuses a question as the user's only message "
            f"({one_line(error)}); give --prompt_template, or change the chat template"
        ) from error
    spelled = [index for index, question in enumerate(questions) if any(token in question for token in special)]
    for index in spelled:
        text, *rest = [tokenizer(part, add_special_tokens=False).input_ids for part in around.split(PLACEHOLDER)]
        question = tokenizer(questions[index], add_special_tokens=False, split_special_tokens=True).input_ids
        prompts[index] = [*text, *(token for part in rest for token in (*question, *part))]
    return prompts
