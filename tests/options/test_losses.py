"""The terms of the option loss and the adaptive weight. Numbers are worked by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ollm_rl.options.losses import (
    AdaptiveKLWeight,
    expected_cross_entropy,
    kl_to_prior,
    policy_imitation_loss,
    policy_marginal_loss,
    sample_options,
    token_cross_entropy,
)

LOG2, LOG3 = math.log(2), math.log(3)
# Logits whose softmax is (1/2, 1/2) and (3/4, 1/4).
ENCODER = torch.tensor([[0.0, 0.0], [LOG3, 0.0]])


def test_the_expected_cross_entropy_weighs_each_option_by_its_probability() -> None:
    cross_entropies = torch.tensor([[1.0, 3.0], [2.0, 6.0]])
    # Rows: (1 + 3) / 2 = 2 and 2 * 3/4 + 6 * 1/4 = 3; mean 2.5.
    assert expected_cross_entropy(ENCODER, cross_entropies).item() == pytest.approx(2.5)


def test_the_kl_to_the_uniform_prior_is_log_k_minus_the_entropy() -> None:
    # First row 0; second row log 2 - H(3/4, 1/4) = 3/4 log 3 - log 2.
    assert kl_to_prior(ENCODER).item() == pytest.approx((0.75 * LOG3 - LOG2) / 2)
    assert kl_to_prior(torch.full((3, 10), 7.0)).item() == pytest.approx(0, abs=1e-6)
    assert kl_to_prior(torch.tensor([[0.0, -1e4, -1e4, -1e4]])).item() == pytest.approx(math.log(4))


def test_the_kl_to_another_prior_is_the_mean_log_ratio_under_q() -> None:
    prior = torch.tensor([[LOG3, 0.0], [LOG3, 0.0]])  # (3/4, 1/4) in both rows
    # Row 1: 1/2 log(2/3) + 1/2 log 2 = log 2 - 1/2 log 3; row 2: 0.
    assert kl_to_prior(ENCODER, prior).item() == pytest.approx((LOG2 - LOG3 / 2) / 2)


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


def test_the_marginal_loss_is_the_negative_log_likelihood_of_the_mixture() -> None:
    # Policy (3/4, 1/4); the options give the true token 1/3 and 1/2: 1/4 + 1/8 = 3/8.
    policy = torch.tensor([[LOG3, 0.0]], requires_grad=True)
    losses = torch.tensor([[LOG3, LOG2]], requires_grad=True)
    loss = policy_marginal_loss(policy, losses)
    assert loss.item() == pytest.approx(math.log(8 / 3))
    loss.backward()
    assert losses.grad is None, "the options do not learn from the policy's loss"
    # policy - posterior: 3/4 - (1/4) / (3/8) = 1/12.
    assert policy.grad is not None
    torch.testing.assert_close(policy.grad, torch.tensor([[1 / 12, -1 / 12]]))


def test_sampled_options_are_one_hot_and_as_frequent_as_q_says() -> None:
    torch.manual_seed(0)
    rows = sample_options(torch.tensor([LOG3, 0.0]).expand(20_000, 2), temperature=0.5)
    assert torch.equal(rows.sort(-1).values, torch.tensor([0.0, 1.0]).expand(20_000, 2))
    # Standard error of a share of 3/4: sqrt(3/16 / 20000) = 0.003.
    assert rows[:, 0].mean().item() == pytest.approx(0.75, abs=0.012)


def test_a_sample_is_differentiated_as_the_softmax_of_its_noisy_logits() -> None:
    logits = torch.tensor([[1.0, -1.0, 0.5]], requires_grad=True)
    values = torch.tensor([2.0, -3.0, 7.0])
    torch.manual_seed(3)
    (sample_options(logits, temperature=0.7) @ values).sum().backward()
    found, logits.grad = logits.grad, None
    torch.manual_seed(3)
    noise = -torch.empty(1, 3).exponential_().log()  # a Gumbel variable is -log of an exponential one
    (((logits + noise) / 0.7).softmax(-1) @ values).sum().backward()
    torch.testing.assert_close(found, logits.grad)


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


def test_without_a_target_the_kl_weight_stays() -> None:
    assert AdaptiveKLWeight(None, 0.7).update(5.0) == pytest.approx(0.7)


N, H, V = 7, 5, 11
SIZES = [1, V, 2 * V, 3 * V + 5, N * V, 10**6]  # bounds on the logits of a chunk, from one position to all


def problem(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, nn.Linear, torch.Tensor, torch.Tensor]:
    """Hidden states (N, H), a frozen head, targets (N,) and a weight (N,) for every loss, so that gradients differ."""
    torch.manual_seed(1)
    head = nn.Linear(H, V, dtype=dtype).requires_grad_(False)
    hidden = 3 * torch.randn(N, H, dtype=dtype)
    return hidden.requires_grad_(), head, torch.randint(V, (N,)), torch.rand(N, dtype=dtype)


@pytest.mark.parametrize("soft_cap", [None, 1.5])
@pytest.mark.parametrize("max_logits", SIZES)
def test_the_chunked_cross_entropy_equals_torchs_in_value_and_gradient(max_logits: int, soft_cap: float | None) -> None:
    hidden, head, targets, weights = problem()
    logits = head(hidden)
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    expected = F.cross_entropy(logits, targets, reduction="none")
    (expected * weights).sum().backward()
    expected_gradient, hidden.grad = hidden.grad, None

    found = token_cross_entropy(hidden, head, targets, soft_cap=soft_cap, max_logits=max_logits)
    (found * weights).sum().backward()

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(hidden.grad, expected_gradient)


@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_the_gradient_of_the_chunked_cross_entropy_agrees_with_finite_differences(soft_cap: float | None) -> None:
    hidden, head, targets, _ = problem(torch.float64)
    assert torch.autograd.gradcheck(
        lambda states: token_cross_entropy(states, head, targets, soft_cap=soft_cap, max_logits=2 * V), (hidden,)
    )


def test_the_gradients_of_every_other_term_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    first, second = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for term in (expected_cross_entropy, kl_to_prior):
        assert torch.autograd.gradcheck(term, (first, second))
    for one_sided in (policy_imitation_loss, policy_marginal_loss):
        assert torch.autograd.gradcheck(one_sided, (first, second.detach()))


@pytest.mark.parametrize("max_logits", [V, 2 * V, 3 * V + 5])
def test_no_more_than_max_logits_exist_at_once(max_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, targets, _ = problem()
    sizes: list[int] = []
    plain = F.linear

    def noting(*arguments: torch.Tensor) -> torch.Tensor:
        logits = plain(*arguments)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(F, "linear", noting)
    token_cross_entropy(hidden, head, targets, max_logits=max_logits).sum().backward()
    assert sum(sizes) == N * V, "every chunk is computed once"
    assert max(sizes) <= max_logits
