"""Settings of the prompt, shared by all commands that ask questions. Nothing heavy is imported."""

from dataclasses import dataclass

from ollm_rl.errors import UsageError
from ollm_rl.settings import Settings


@dataclass(frozen=True, kw_only=True)
class PromptSettings(Settings):
    """The prompt."""

    system_prompt: str | None = None
    """System message before every question; needs a chat template that takes one. Give it to all commands alike."""
    prompt_template: str | None = None
    """Plain text with {question}, such as "Question: {question} Answer:", in place of the tokenizer's chat template."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_template is None:
            return
        if self.prompt_template.count("{question}") != 1:
            raise UsageError(f"prompt_template={self.prompt_template!r} must hold {{question}} once")
        if self.system_prompt is not None:
            raise UsageError("system_prompt is not used with prompt_template; write its text into the template")
