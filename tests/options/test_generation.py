"""``OptionModel.generate``: transformers' generate over options."""

from typing import Any

import pytest
import torch

from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.errors import UsageError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.decisions import token_log_probs
from ollm_rl.options.generation import chosen_logits
from ollm_rl.options.model import OptionModel
from tests.tiny_models import greedy_generate, tiny_model

PROMPT = torch.tensor([[5, 6, 7, 8], [30, 31, 32, 33]])


def option_model(family: str = "llama") -> OptionModel:
    torch.manual_seed(0)
    model = OptionModel(tiny_model(family), OptionConfig(num_options=4, width=16)).eval()
    with torch.no_grad():
        model.adapter.option_embedding.mul_(10)
    return model


def stepwise(model: OptionModel, prompt: list[int], option: int | None, count: int) -> list[int]:
    """One full pass per token: the token of an option, or by the policy's greedy decoding."""
    ids = list(prompt)
    for _ in range(count):
        hidden = model.hidden_states(torch.tensor([ids]))[:, -1]
        if option is None:
            ids.append(int(OptionPolicy(model).act(hidden, None).tokens))
        else:
            ids.append(int(model.option_tokens(hidden)[0, option]))
    return ids


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_every_option_and_the_policy_write_what_full_passes_choose(family: str) -> None:
    model = option_model(family)
    arguments: dict[str, Any] = {"attention_mask": torch.ones_like(PROMPT), "max_new_tokens": 5, "do_sample": False}
    by_policy = model.generate(PROMPT, **arguments)
    assert by_policy.tolist() == [stepwise(model, row, None, 5) for row in PROMPT.tolist()]
    assert model.generate(PROMPT, option=2, **arguments).tolist() == [
        stepwise(model, row, 2, 5) for row in PROMPT.tolist()
    ]
    mixed = model.generate(PROMPT, option=torch.tensor([3, 1]), **arguments, num_beams=2, num_return_sequences=1)
    alone = [model.generate(PROMPT[i : i + 1], option=z, max_new_tokens=5, num_beams=2) for i, z in ((0, 3), (1, 1))]
    assert mixed.tolist() == torch.cat(alone).tolist()
    assert greedy_generate(model.backbone, PROMPT[0].tolist(), 5) == greedy_generate(
        tiny_model(family), PROMPT[0].tolist(), 5
    )  # the backbone is as before


def test_samples_follow_the_policy_and_only_offered_tokens_are_written() -> None:
    model = option_model()
    hidden = model.hidden_states(PROMPT[:1])[:, -1]
    tokens = model.option_tokens(hidden)
    expected = dict(
        zip(tokens[0].tolist(), token_log_probs(model.option_logits(hidden), tokens)[0].exp().tolist(), strict=True)
    )
    arguments: dict[str, Any] = {"max_new_tokens": 1, "num_return_sequences": 3000, "do_sample": True, "top_k": 0}
    for option in ("policy", "sampled"):
        torch.manual_seed(0)
        drawn = model.generate(PROMPT[:1], option=option, **arguments)[:, -1]
        shares = {token: float((drawn == token).float().mean()) for token in set(drawn.tolist())}
        assert shares == pytest.approx({token: expected[token] for token in shares}, abs=0.04)
        assert set(shares) <= set(expected)


def test_the_policy_adds_up_options_of_one_token() -> None:
    by_option = torch.zeros(1, 1, 3, 5)
    by_option[0, 0, [0, 1, 2], [4, 2, 4]] = 1.0  # the options say 4, 2 and 4
    logits = chosen_logits(by_option, torch.tensor([[[0.3, 0.4, 0.3]]]).log(), "policy")
    torch.testing.assert_close(logits[0, 0].exp(), torch.tensor([0.0, 0.0, 0.4, 0.0, 0.6]))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("greedy", "option='greedy' is unknown; give 'policy', 'sampled', a number from 0 to 3"),
        (4, "option=4 is out of range; there are 4, from 0 to 3"),
        (True, "option=True is unknown"),
        (torch.tensor([0, 9]), "option=9 is out of range"),
        (torch.tensor([0]), "or a tensor of 2 such numbers, one per prompt"),
    ],
)
def test_an_option_that_there_is_not_is_refused(option: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        option_model().generate(PROMPT, option=option, max_new_tokens=1)
