"""The prompt of a problem with and without a chat template, in every place that reads it."""

import numpy as np
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from ollm_rl.envs.text_gen import TextGenEnv
from ollm_rl.errors import UsageError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import IGNORED, OptionModel
from ollm_rl.pretrain.data import encode_examples
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.prompts import encode_prompts, format_prompts
from ollm_rl.settings import PromptSettings
from tests.tiny_models import EOS, tiny_model, tiny_tokenizer

PROBLEMS = [
    Problem(id=f"sum-{index}", question=question, solution="", answer="7", language="en")
    for index, question in enumerate(["3 + 4 = ?", "10 - 3"])
]
# Begins with a special token, as the templates of Llama and Gemma do.
TEMPLATE = """{{ '<|endoftext|>' }}{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


def plain_ids(text: str) -> list[int]:
    ids: list[int] = tiny_tokenizer()(text).input_ids
    return ids


def beginning_tokenizer(template: str | None) -> PreTrainedTokenizerBase:
    """A tokenizer that itself adds a special token at the beginning of every text."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", EOS)]
    )
    tokenizer.chat_template = template
    return tokenizer


def test_a_prompt_without_a_chat_template_is_the_question_and_a_line_break() -> None:
    expected = [plain_ids("3 + 4 = ?\n"), plain_ids("10 - 3\n")]
    assert encode_prompts(PROBLEMS, tiny_tokenizer(), max_length=64) == expected
    begun = [[EOS, *ids] for ids in expected]
    assert encode_prompts(PROBLEMS, beginning_tokenizer(None), max_length=64) == begun


def test_a_prompt_with_a_chat_template_has_each_special_token_once() -> None:
    tokenizer = beginning_tokenizer(TEMPLATE)
    assert tokenizer("a").input_ids == [EOS, *plain_ids("a")], "else nothing could be doubled"
    prompts = encode_prompts(PROBLEMS, tokenizer, max_length=64)
    assert prompts[0] == [EOS, *plain_ids("user: 3 + 4 = ?\nassistant: ")]
    for problem, prompt in zip(PROBLEMS, prompts, strict=True):
        chat = [{"role": "user", "content": problem.question}]
        assert prompt == tokenizer.apply_chat_template(chat, add_generation_prompt=True).input_ids


def test_the_template_counts_towards_the_length() -> None:
    # 1 special token, "user: ", "10 - 3", a line break and "assistant: ": 1 + 6 + 6 + 1 + 11 = 25 tokens.
    tokenizer = beginning_tokenizer(TEMPLATE)
    assert len(encode_prompts(PROBLEMS[1:], tokenizer, max_length=30, max_new_tokens=5)[0]) == 25
    with pytest.raises(ValueError, match="'sum-1' has 25 tokens and leaves no room for 6 more within 30"):
        encode_prompts(PROBLEMS[1:], tokenizer, max_length=30, max_new_tokens=6)


def test_training_reads_the_chat_prompt_and_learns_only_the_completion() -> None:
    (example,) = encode_examples(PROBLEMS[1:], beginning_tokenizer(TEMPLATE), max_length=64)
    completion = [*plain_ids("#### 7"), EOS]
    assert example["input_ids"] == [EOS, *plain_ids("user: 10 - 3\nassistant: "), *completion]
    assert example["labels"] == [IGNORED] * 25 + completion


@pytest.mark.parametrize(
    ("template", "prompt"),
    [(None, "<|endoftext|>10 - 3\n"), (TEMPLATE, "<|endoftext|>user: 10 - 3\nassistant: ")],
)
def test_an_environment_shows_the_prompt_that_its_model_reads(template: str | None, prompt: str) -> None:
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=2, width=16))
    tokenizer = beginning_tokenizer(template)
    env = TextGenEnv(model, PROBLEMS, action_space="tokens", max_new_tokens=8, tokenizer=tokenizer, render_mode="ansi")
    env.reset(options={"problem": 1})
    assert env.render() == prompt
    for token in plain_ids("é"):
        env.step(np.int64(token))
    assert env.render() == f"{prompt}é"


def test_half_a_character_is_named_by_its_problem() -> None:
    problems = [
        Problem(id=name, question=question, solution="", answer=answer, language="en")
        for name, question, answer in (("whole", "1+1?", "2"), ("half", "1\ud800?", "2"))
    ]
    with pytest.raises(ValueError, match="problem 'half' has a lone surrogate, half a character; correct it"):
        encode_prompts(problems, tiny_tokenizer(), max_length=64)


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", EOS)]
    )
    assert tokenizer("a").input_ids[-1] == EOS, "else nothing could be dropped"
    assert encode_prompts(PROBLEMS, tokenizer, max_length=64) == [plain_ids("3 + 4 = ?\n"), plain_ids("10 - 3\n")]


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_special_token_that_a_question_spells_stays_text(template: str | None) -> None:
    tokenizer = beginning_tokenizer(template)
    question = "What is <|endoftext|>?"
    spelled = Problem(id="spelled", question=question, solution="", answer="", language="en")
    assert tokenizer(question).input_ids.count(EOS) == 2, "else nothing could be misread"
    plain, prompt = encode_prompts([PROBLEMS[0], spelled], tokenizer, max_length=64)
    assert prompt.count(EOS) == 1 and prompt[0] == EOS
    text = f"{question}\n" if template is None else f"user: {question}\nassistant: "
    assert tokenizer.decode(prompt[1:]) == text
    assert plain == encode_prompts(PROBLEMS[:1], tokenizer, max_length=64)[0]


def test_a_chat_template_that_raises_is_one_line_with_its_message() -> None:
    tokenizer = beginning_tokenizer("{{ raise_exception('a system prompt\nis needed') }}")
    with pytest.raises(
        UsageError, match=r"chat template of .* \(a system prompt is needed\); give --prompt_template"
    ) as error:
        encode_prompts(PROBLEMS, tokenizer, max_length=64)
    assert "\n" not in str(error.value)


def test_a_system_prompt_is_the_first_message_and_that_of_a_later_command_replaces_it() -> None:
    tokenizer = beginning_tokenizer(TEMPLATE)
    for text in ("Ignore me.", "Say 'é'\nand \"why\" {{x}}."):
        format_prompts(tokenizer, PromptSettings(system_prompt=text))
        format_prompts(tokenizer, PromptSettings())
        (prompt,) = encode_prompts(PROBLEMS[1:], tokenizer, max_length=99)
        assert prompt == [EOS, *plain_ids(f"system: {text}\nuser: 10 - 3\nassistant: ")]


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_plain_text_template_takes_the_place_of_the_chat_template(template: str | None) -> None:
    tokenizer = beginning_tokenizer(template)
    settings = PromptSettings(prompt_template="Q: {question}\n'A': ")
    format_prompts(tokenizer, settings)
    expected = plain_ids("Q: 10 - 3\n'A': ")
    assert encode_prompts(PROBLEMS[1:], tokenizer, max_length=64) == [expected]
    tokenizer.bos_token = "<|endoftext|>"  # it begins a text, so it begins this one too
    format_prompts(tokenizer, settings)
    assert encode_prompts(PROBLEMS[1:], tokenizer, max_length=64) == [[EOS, *expected]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_template": "Q:"}, "prompt_template='Q:' must hold {question} once"),
        ({"prompt_template": "{question}", "system_prompt": "Be brief."}, "system_prompt is not used with prompt_temp"),
    ],
)
def test_prompt_settings_that_cannot_be_used_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PromptSettings(**settings)


def test_a_system_prompt_without_a_chat_template_is_refused() -> None:
    with pytest.raises(UsageError, match="system_prompt='Be brief.' needs one chat template"):
        format_prompts(tiny_tokenizer(), PromptSettings(system_prompt="Be brief."))
