"""``OptionModel.generate``: transformers' ``generate`` with the options in place of the backbone's own logits.

Letters: B batch, T tokens, H hidden, K options, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from ollm_rl.errors import UsageError
from ollm_rl.options.decisions import token_log_probs
from ollm_rl.settings import shown

Option = int | torch.Tensor | Literal["policy", "sampled"]


def generate_with(
    backbone: PreTrainedModel,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    input_ids: torch.Tensor,
    arguments: dict[str, Any],
) -> Any:
    """The backbone's ``generate`` with logits (B, T, V) computed from h_t, (B, T, H); the model is not changed."""
    hidden: list[torch.Tensor] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        hidden[:] = [inputs[0]]

    def replace(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        output["logits"] = logits_of(hidden.pop())
        return output

    head: torch.nn.Module = backbone.get_output_embeddings()
    hooks = [head.register_forward_pre_hook(note), backbone.register_forward_hook(replace)]
    try:
        return backbone.generate(input_ids, **arguments)
    finally:
        for hook in hooks:
            hook.remove()


def chosen_logits(by_option: torch.Tensor, policy_logits: torch.Tensor, option: Option) -> torch.Tensor:
    """Logits of the next token: (B, T, K, V), (B, T, K) -> (B, T, V).

    Under a fixed option they are those of that option. By the policy they are log-probabilities, summed over the
    options whose most probable token it is. A sampled option leaves only its most probable token.
    """
    if isinstance(option, int):
        return by_option[..., option, :]
    if isinstance(option, torch.Tensor):
        rows = len(by_option) // len(option)  # more than one with several sequences or beams
        index = option.to(by_option.device).repeat_interleave(rows)
        return by_option[torch.arange(len(index), device=index.device), :, index]
    tokens, policy_logits = by_option.argmax(-1), policy_logits.float()
    nothing = torch.full_like(by_option[..., 0, :], -torch.inf, dtype=torch.float32)
    if option == "sampled":
        drawn = torch.distributions.Categorical(logits=policy_logits).sample()
        return nothing.scatter(-1, tokens.gather(-1, drawn[..., None]), 0.0)
    # Options of one token write the same number, so their order does not matter.
    return nothing.scatter(-1, tokens, token_log_probs(policy_logits, tokens))


def check_option(option: Any, num_options: int, batch: int) -> None:
    """Refuse an option that there is not.

    Raises:
        UsageError: The message names it and says what to give.
    """
    if isinstance(option, str) and option in ("policy", "sampled"):
        return
    if isinstance(option, torch.Tensor) and option.shape == (batch,) and option.dtype == torch.long:
        numbers = option.tolist()
    elif isinstance(option, int) and not isinstance(option, bool):
        numbers = [option]
    else:
        raise UsageError(
            f"option={shown(option)} is unknown; give 'policy', 'sampled', a number from 0 to {num_options - 1}, or a "
            f"tensor of {batch} such numbers, one per prompt"
        )
    for number in numbers:
        if not 0 <= number < num_options:
            raise UsageError(f"option={number} is out of range; there are {num_options}, from 0 to {num_options - 1}")
