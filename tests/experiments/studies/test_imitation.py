"""Imitation: positions of completions are those of the rollout that wrote them, and what is not offered is counted."""

import argparse
from dataclasses import replace

import pytest
import torch

from ollm_rl.agents.policies.anchored import AnchoredPolicy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import Rollout, collect
from ollm_rl.decode.turns import Turns
from ollm_rl.experiments.studies.imitation import imitate, positions
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.tiny_models import CONTEXT, EOS, VOCAB, tiny_model

Policy = AnchoredPolicy | OptionPolicy


def make(kind: type[Policy]) -> Policy:
    torch.manual_seed(0)
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=4, width=16))
    with torch.no_grad():
        model.adapter.option_embedding.mul_(10)  # options that lead to different tokens
    return kind(model)


def written_by(policy: Policy) -> Rollout:
    """Three completions of different length behind prompts of different length."""
    return collect(
        Turns(DecodeEngine(policy.backbone, 3, CONTEXT), policy.act),
        [[5, 6, 7], [9], [30, 31, 32, 33, 34]],
        max_new_tokens=[8, 5, 7],
        end_tokens=[EOS],
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("kind", [AnchoredPolicy, OptionPolicy])
def test_what_a_policy_wrote_itself_it_could_write_whole(kind: type[Policy]) -> None:
    policy = make(kind)
    written = written_by(policy)
    found, whole = positions(policy, written)
    assert whole == 1
    mask = written.completion_mask
    assert found.tokens[:, 0].tolist() == written.tokens[mask].tolist()
    assert found.decisions[:, 0].tolist() == written.decisions[mask].tolist()
    torch.testing.assert_close(found.stored["hidden_states"][:, 0], written.stored["hidden_states"][mask])
    assert torch.equal(found.stored["option_tokens"][:, 0], written.stored["option_tokens"][mask])
    chosen = found.stored["option_tokens"][:, 0].gather(1, found.stored["options"])
    assert torch.equal(chosen, found.tokens)


def test_a_completion_with_a_token_that_no_option_offers_is_not_whole_and_its_token_is_not_learned() -> None:
    policy = make(AnchoredPolicy)
    written = written_by(policy)
    length = int(written.completion_mask[1].sum())
    tokens = written.tokens.clone()
    offered = set(written.stored["option_tokens"][1, length - 1].tolist())
    tokens[1, length - 1] = next(token for token in range(VOCAB) if token not in offered)
    found, whole = positions(policy, replace(written, tokens=tokens))
    assert whole == pytest.approx(2 / 3)
    last = int(written.completion_mask[:2].sum()) - 1
    assert not found.decisions[last, 0]


def test_imitation_makes_the_completions_more_probable() -> None:
    policy = make(AnchoredPolicy)
    found, _ = positions(policy, written_by(policy))
    before = -float(policy.evaluate(found).log_probs.mean().detach())
    args = argparse.Namespace(learning_rate=1e-2, seed=0, passes=30)
    assert imitate(policy, found, args) < 0.5 * before
