"""What an agent of one's own may want to know of the options at an observation, for ``info``.

Letters: B slots, K options.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from ollm_rl.errors import UsageError
from ollm_rl.options.model import OptionModel
from ollm_rl.settings import checked, shown

InfoField = Literal["option_tokens", "live", "start_log_probs"]


def check_fields(fields: Any) -> tuple[str, ...]:
    """The names of what ``info`` shall hold.

    Raises:
        UsageError: If one is unknown.
    """
    if isinstance(fields, str) or not isinstance(fields, Sequence):
        raise UsageError(f"info_fields={shown(fields)} is no list; give some of option_tokens, live, start_log_probs")
    return tuple(checked("info_fields", field, InfoField) for field in fields)


def option_info(
    model: OptionModel, hidden_states: torch.Tensor, option_tokens: torch.Tensor, fields: Sequence[str]
) -> dict[str, np.ndarray]:
    """The fields for h_t, (B, H), at which the options lead to ``option_tokens``, (B, K).

    Returns:
        ``option_tokens``: (B, K). ``live``: whether they differ, so that there is something to decide, (B,).
        ``start_log_probs``: log pi(z | h_t) of the start policy, the one that SFT trained, (B, K), in nats.
    """
    found: dict[str, np.ndarray] = {}
    if "option_tokens" in fields:
        found["option_tokens"] = option_tokens.cpu().numpy()
    if "live" in fields:
        found["live"] = (option_tokens != option_tokens[:, :1]).any(-1).cpu().numpy()
    if "start_log_probs" in fields:
        with torch.no_grad():
            found["start_log_probs"] = model.option_logits(hidden_states).float().log_softmax(-1).cpu().numpy()
    return found
