"""The terms of the option loss and the adaptive weight; numbers are worked by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from ollm_rl.losses import (
    AdaptiveKLWeight,
    expected_cross_entropy,
    kl_to_uniform,
    option_cross_entropy,
    policy_imitation_loss,
)

LOG2, LOG3 = math.log(2), math.log(3)
# Logits whose softmax is (1/2, 1/2) and (3/4, 1/4).
ENCODER = torch.tensor([[0.0, 0.0], [LOG3, 0.0]])


def test_the_expected_cross_entropy_weighs_each_option_by_its_probability() -> None:
    cross_entropies = torch.tensor([[1.0, 3.0], [2.0, 6.0]])
    # Rows: (1 + 3) / 2 = 2 and 2 * 3/4 + 6 * 1/4 = 3; mean 2.5.
    assert expected_cross_entropy(ENCODER, cross_entropies).item() == pytest.approx(2.5)


def test_the_kl_to_uniform_is_log_k_minus_the_entropy() -> None:
    # First row 0; second row log 2 - H(3/4, 1/4) = 3/4 log 3 - log 2.
    assert kl_to_uniform(ENCODER).item() == pytest.approx((0.75 * LOG3 - LOG2) / 2)
    assert kl_to_uniform(torch.full((3, 10), 7.0)).item() == pytest.approx(0, abs=1e-6)
    assert kl_to_uniform(torch.tensor([[0.0, -1e4, -1e4, -1e4]])).item() == pytest.approx(math.log(4))


def test_the_policy_loss_is_the_cross_entropy_against_the_encoder() -> None:
    uniform = torch.zeros(2, 2)
    assert policy_imitation_loss(uniform, ENCODER).item() == pytest.approx(LOG2)
    # Policy (1/4, 3/4) in both rows. Row 1: log 4 - 1/2 log 3; row 2: 3/4 log 4 + 1/4 (log 4 - log 3).
    policy = torch.tensor([[0.0, LOG3], [0.0, LOG3]])
    expected = (2 * LOG2 - LOG3 / 2 + 2 * LOG2 - LOG3 / 4) / 2
    assert policy_imitation_loss(policy, ENCODER).item() == pytest.approx(expected)


def test_the_policy_loss_sends_no_gradient_into_the_encoder() -> None:
    policy, encoder = torch.zeros(2, 2, requires_grad=True), ENCODER.clone().requires_grad_()
    policy_imitation_loss(policy, encoder).backward()
    assert encoder.grad is None
    # Gradient of a cross-entropy: (policy - encoder) / N.
    assert policy.grad is not None
    torch.testing.assert_close(policy.grad, torch.tensor([[0.0, 0.0], [-0.125, 0.125]]))


def test_the_kl_weight_grows_above_the_target_and_shrinks_below_it() -> None:
    weight = AdaptiveKLWeight(0.2, 1.0, rate=0.1)
    assert weight.update(0.3) == pytest.approx(math.exp(0.05))  # relative error 1/2
    assert weight.update(0.2) == pytest.approx(math.exp(0.05))
    assert weight.update(0.1) == pytest.approx(1.0)
    assert weight.update(0.0) == pytest.approx(math.exp(-0.1))


def test_one_step_of_the_kl_weight_is_clipped_at_a_relative_error_of_one() -> None:
    weight = AdaptiveKLWeight(0.2, 1.0, rate=0.1)
    assert weight.update(1000.0) == pytest.approx(math.exp(0.1))


def test_the_kl_weight_stays_within_its_bounds() -> None:
    weight = AdaptiveKLWeight(0.2, 1.0, rate=1.0, min_weight=0.5, max_weight=2.0)
    assert weight.update(5.0) == pytest.approx(2.0)
    assert weight.update(5.0) == pytest.approx(2.0)
    assert [weight.update(0.0) for _ in range(3)][-1] == pytest.approx(0.5)


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_kl_that_is_not_finite_is_refused_and_leaves_the_weight_as_it_was(kl: float) -> None:
    weight = AdaptiveKLWeight(0.2, 0.7)
    with pytest.raises(ValueError, match="not finite"):
        weight.update(kl)
    assert float(weight.weight) == pytest.approx(0.7)


def test_the_kl_weight_is_saved_with_the_module() -> None:
    weight, other = AdaptiveKLWeight(0.2, 0.7), AdaptiveKLWeight(0.2, 0.1)
    other.load_state_dict(weight.state_dict())
    assert float(other.weight) == pytest.approx(0.7)


N, H, K, V = 7, 5, 3, 11


class Decoder(torch.nn.Module):
    """Logits of every option by two small tensors; notes how many logits each call makes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.biases = torch.nn.Parameter(torch.randn(K, H, generator=generator))
        self.head = torch.nn.Parameter(torch.randn(H, V, generator=generator))
        self.sizes: list[int] = []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.tanh(hidden[:, None] + self.biases) @ self.head
        self.sizes.append(logits.numel())
        return logits


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states (N, H), targets (N,) and a weight (N, K) for every loss, so that gradients differ."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, H, generator=generator)
    return hidden, torch.randint(V, (N,), generator=generator), torch.rand(N, K, generator=generator)


@pytest.mark.parametrize("max_logits", [1, K * V, 2 * K * V, 3 * K * V + 5, N * K * V, 10**6])
def test_the_option_cross_entropy_equals_brute_force_over_all_options_in_value_and_gradient(max_logits: int) -> None:
    hidden, targets, weights = problem()
    reference = Decoder()
    logits = reference(hidden)
    rows = [[-F.log_softmax(logits[n, k], -1)[targets[n]] for k in range(K)] for n in range(N)]
    expected = torch.stack([torch.stack(row) for row in rows])
    (expected * weights).sum().backward()

    decoder = Decoder()
    found, tokens = option_cross_entropy(decoder, hidden, targets, num_options=K, vocab_size=V, max_logits=max_logits)
    (found * weights).sum().backward()

    torch.testing.assert_close(found, expected)
    assert tokens.tolist() == [[int(logits[n, k].argmax()) for k in range(K)] for n in range(N)]
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad)


@pytest.mark.parametrize("max_logits", [K * V, 2 * K * V, 3 * K * V + 5])
def test_no_more_than_max_logits_are_decoded_at_once_forward_and_backward(max_logits: int) -> None:
    hidden, targets, _ = problem()
    decoder = Decoder()
    found, _ = option_cross_entropy(decoder, hidden, targets, num_options=K, vocab_size=V, max_logits=max_logits)
    forward = len(decoder.sizes)
    assert sum(decoder.sizes) == N * K * V
    found.sum().backward()
    assert len(decoder.sizes) > forward, "the backward pass decodes again instead of keeping logits"
    assert max(decoder.sizes) <= max_logits


def test_at_least_one_position_is_decoded_at_a_time_however_small_the_bound() -> None:
    hidden, targets, _ = problem()
    decoder = Decoder()
    option_cross_entropy(decoder, hidden, targets, num_options=K, vocab_size=V, max_logits=1)
    assert decoder.sizes == [K * V] * N
