"""Policies over the vocabulary make logits chunk by chunk: the same numbers and gradients, in bounded memory."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from ollm_rl.agents.policies.frozen_head import FrozenHeadPolicy
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.backbones import chunks
from ollm_rl.decode.rollout import Rollout
from tests.tiny_models import VOCAB, tiny_model

LENGTHS = [(3, 5), (1, 2), (4, 4)]  # of prompt and completion


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    generator = torch.Generator().manual_seed(0)

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(1, VOCAB, shape, generator=generator)

    ends = torch.tensor([length for _, length in LENGTHS])
    mask = torch.arange(5) < ends[:, None]
    zeros = torch.zeros(3, 5)
    hidden = torch.randn(3, 5, 32, generator=generator)
    prompts = [tokens(length).tolist() for length, _ in LENGTHS]
    return Rollout(prompts, tokens(3, 5), mask, mask, zeros, zeros, mask[:, 0], {"hidden_states": hidden})


def shaken(policy: TokenPolicy | FrozenHeadPolicy) -> TokenPolicy | FrozenHeadPolicy:
    """With weights that already change the output."""
    torch.manual_seed(2)
    for weight in policy.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.1)
    return policy


def by_hand(policy: TokenPolicy | FrozenHeadPolicy, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies from the whole logits of one unpadded row after the other, by torch."""
    chosen, entropies = [], []
    for row, (start, length) in enumerate(LENGTHS):
        tokens = rollout.tokens[row, :length]
        if isinstance(policy, TokenPolicy):
            sequence = torch.cat([torch.tensor(rollout.prompts[row]), tokens])
            logits = policy.backbone(sequence[None]).logits[0, start - 1 : -1]
        else:
            logits = policy.backbone.lm_head(policy.shift(rollout.stored["hidden_states"][row, :length]))
        distribution = torch.distributions.Categorical(logits=logits / policy.temperature)
        chosen.append(distribution.log_prob(tokens))
        entropies.append(distribution.entropy())
    return torch.cat(chosen), torch.cat(entropies)


def gradients(policy: nn.Module, chosen: torch.Tensor, entropies: torch.Tensor) -> Sequence[torch.Tensor]:
    """Of a sum in which every position has weights of its own."""
    generator = torch.Generator().manual_seed(1)
    one, other = torch.randn(2, len(chosen), generator=generator)
    weights = [weight for name, weight in policy.named_parameters() if weight.requires_grad and "value" not in name]
    return torch.autograd.grad((one * chosen + other * entropies).sum(), weights)


@pytest.mark.parametrize(("kind", "temperature"), [(TokenPolicy, 1.0), (FrozenHeadPolicy, 0.7)])
def test_chunks_give_the_numbers_and_gradients_of_whole_logits(
    kind: type[TokenPolicy | FrozenHeadPolicy],
    temperature: float,
    rollout: Rollout,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = tiny_model("llama")
    policy = shaken(TokenPolicy(backbone, rank=4) if kind is TokenPolicy else FrozenHeadPolicy(backbone))
    policy.temperature = temperature
    expected = by_hand(policy, rollout)
    slopes = gradients(policy, *expected)
    whole = policy.evaluate(rollout, reference=True)
    monkeypatch.setattr(chunks, "MAX_LOGITS", 3 * VOCAB)  # the eleven decisions in chunks of three
    now = policy.evaluate(rollout, reference=True)
    torch.testing.assert_close(now.log_probs, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(now.entropies, expected[1], rtol=1e-5, atol=1e-5)
    assert now.reference is not None and not now.reference.requires_grad
    torch.testing.assert_close(now.reference, whole.reference, rtol=1e-6, atol=1e-6)
    for one, other in zip(gradients(policy, now.log_probs, now.entropies), slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_no_more_than_a_chunk_of_logits_is_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    head = nn.Linear(8, 1000)
    hidden = torch.randn(64, 8, requires_grad=True)
    made: list[int] = []
    kept: list[int] = []

    def squares(rows: torch.Tensor) -> tuple[torch.Tensor]:
        made.append(len(rows))
        return (head(rows).square().sum(-1),)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    monkeypatch.setattr(chunks, "MAX_LOGITS", 10 * 1000)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        (found,) = chunks.in_chunks(squares, hidden, vocab_size=1000)
    assert made == [10] * 6 + [4]
    assert sum(size for size in kept if size >= 1000) <= 4 * 1000 + head.weight.numel(), "only those of the last chunk"
    found.sum().backward()
    assert made == [10] * 6 + [4] + [10] * 6, "the others are made again"
    whole = copy.deepcopy(hidden.detach()).requires_grad_()
    head(whole).square().sum().backward()
    torch.testing.assert_close(hidden.grad, whole.grad, rtol=1e-5, atol=1e-4)
