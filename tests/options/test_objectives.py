"""The whole option loss: every estimator, prior and policy objective against explicit sums over the options."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import CountedStates, OptionModel
from tests.tiny_models import VOCAB, tiny_model

N, K = 6, 3


def option_model(**settings: Any) -> OptionModel:
    torch.manual_seed(0)
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=K, width=16, **settings))
    for parameter in model.adapter.parameters():  # options and posteriors that differ clearly
        parameter.data.mul_(2)
    return model


def counted(model: OptionModel) -> CountedStates:
    ids = torch.randint(1, VOCAB, (1, N + 1), generator=torch.Generator().manual_seed(1))
    return model.counted_states(ids, ids)


def total(summands: Iterable[torch.Tensor]) -> torch.Tensor:
    return sum(summands, torch.zeros(()))


def by_hand(model: OptionModel, states: CountedStates) -> dict[str, torch.Tensor]:
    """Every term as in the equations, one position and one option at a time, with gradient."""
    hidden, targets, _ = states
    embedded = model.backbone.get_input_embeddings()(targets)
    terms: dict[str, list[torch.Tensor]] = {
        "cross_entropy": [],
        "uniform": [],
        "policy": [],
        "imitation": [],
        "marginal": [],
    }
    for n in range(len(targets)):
        q = model.adapter.encode(hidden[n], embedded[n]).softmax(-1)
        pi = model.option_logits(hidden[n]).softmax(-1)
        p = [
            model.backbone.lm_head(hidden[n] + model.adapter.biases(hidden[n])[z]).softmax(-1)[targets[n]]
            for z in range(K)
        ]
        fixed_q, fixed_pi, fixed_p = q.detach(), pi.detach(), [each.detach() for each in p]
        terms["cross_entropy"].append(-total(q[z] * p[z].log() for z in range(K)))
        terms["uniform"].append(total(q[z] * (q[z] * K).log() for z in range(K)))
        terms["policy"].append(total(q[z] * (q[z] / fixed_pi[z]).log() for z in range(K)))
        terms["imitation"].append(-total(fixed_q[z] * pi[z].log() for z in range(K)))
        terms["marginal"].append(-total(pi[z] * fixed_p[z] for z in range(K)).log())
    return {name: torch.stack(values).mean() for name, values in terms.items()}


@pytest.mark.parametrize("identity_option", [False, True])
@pytest.mark.parametrize("policy_objective", ["imitation", "marginal"])
@pytest.mark.parametrize("prior", ["uniform", "policy"])
def test_the_exact_loss_equals_the_sum_over_all_options_in_value_and_gradient(
    prior: str, policy_objective: str, identity_option: bool
) -> None:
    settings: dict[str, Any] = {"prior": prior, "policy_objective": policy_objective}
    model = option_model(**settings, identity_option=identity_option, kl_weight_init=0.3)
    states = counted(model)
    terms = by_hand(model, states)
    expected = terms["cross_entropy"] + 0.3 * terms[prior] + terms[policy_objective]
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in model.adapter.named_parameters()}
    model.zero_grad()

    output = model.loss(states)
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.cross_entropy, terms["cross_entropy"].detach())
    torch.testing.assert_close(output.kl, terms[prior].detach())
    torch.testing.assert_close(output.policy_loss, terms[policy_objective].detach())
    for name, parameter in model.adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("prior", "highest"), [("policy", 1.0), ("uniform", 10.0)])
def test_the_kl_weight_stops_at_the_evidence_lower_bound_where_the_policy_is_the_prior(
    prior: str, highest: float
) -> None:
    weight = option_model(prior=prior, kl_target=0.2).adapter.kl_weight
    for _ in range(200):
        weight.update(5.0)
    assert float(weight.weight) == highest


def test_with_the_policy_as_prior_and_weight_one_the_gradient_is_the_evidence_lower_bounds() -> None:
    """E_q[CE] + KL(q || pi) as one expression, in which the gradient flows through q, pi and p alike."""
    model = option_model(prior="policy", kl_weight_init=1.0, kl_target=None)
    hidden, targets, _ = states = counted(model)
    q = model.adapter.encode(hidden, model.backbone.get_input_embeddings()(targets)).softmax(-1)
    log_pi = model.option_logits(hidden).log_softmax(-1)
    log_p = model.decode_options(hidden).log_softmax(-1)[torch.arange(N), :, targets]
    bound = (q * (q.log() - log_pi - log_p)).sum(-1).mean()
    bound.backward()
    gradients = {name: parameter.grad for name, parameter in model.adapter.named_parameters()}
    model.zero_grad()
    output = model.loss(states)
    output.loss.backward()
    for name, parameter in model.adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)
    # Jensen: at least the NLL of the true tokens under the mixture.
    mixture = -(log_pi + log_p).logsumexp(-1).mean()
    assert float(output.cross_entropy + output.kl) > float(mixture.detach())


def test_the_gumbel_estimate_of_the_cross_entropy_and_of_the_decoders_gradient_is_unbiased() -> None:
    exact, sampled = option_model(), option_model(estimator="gumbel")
    states = counted(exact)
    decoder = ("decoder_in.weight", "option_embedding", "decoder_out.weight", "decoder_out.bias")

    def decoder_gradient(model: OptionModel) -> torch.Tensor:
        gradient = torch.cat([model.adapter.get_parameter(name).grad.flatten() for name in decoder])  # type: ignore[union-attr]
        model.zero_grad()
        return gradient

    expected = exact.loss(states)
    expected.loss.backward()
    true_gradient = decoder_gradient(exact)
    torch.manual_seed(0)
    draws = 2000
    values, gradients = torch.empty(draws), torch.empty(draws, len(true_gradient))
    for draw in range(draws):
        output = sampled.loss(states)
        output.loss.backward()
        values[draw], gradients[draw] = output.cross_entropy, decoder_gradient(sampled)
    error = values.std() / draws**0.5
    assert error > 0
    assert abs(float(values.mean() - expected.cross_entropy)) < 4 * float(error)
    # Over all entries: the expected squared distance of the mean of N draws is their variance divided by N.
    distance, noise = (gradients.mean(0) - true_gradient).square().sum(), gradients.var(0).sum() / draws
    assert 0.2 * noise < distance < 3 * noise


def test_the_gumbel_estimate_sends_a_gradient_to_every_part_of_the_plug_in() -> None:
    model = option_model(estimator="gumbel")
    model.loss(counted(model)).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.adapter.parameters())


def test_a_mixed_bias_of_one_option_is_that_options_bias() -> None:
    for identity_option in (False, True):
        model = option_model(identity_option=identity_option)
        hidden = counted(model).hidden_states
        for option, row in enumerate(torch.eye(K)):
            mixed = model.adapter.mixed_bias(hidden, row.expand(N, K))
            torch.testing.assert_close(mixed, model.adapter.biases(hidden)[:, option], rtol=1e-4, atol=1e-5)


def test_only_the_identity_option_adds_nothing_to_the_hidden_states() -> None:
    model = option_model(identity_option=True)
    hidden = counted(model).hidden_states
    biases = model.adapter.biases(hidden)
    assert biases.shape == (N, K, hidden.shape[-1])
    assert not biases[:, 0].any() and biases[:, 1:].all()
    torch.testing.assert_close(model.decode_options(hidden)[:, 0], model.lm_logits(hidden))


def test_a_marginal_objective_with_one_sampled_option_is_refused() -> None:
    with pytest.raises(ValueError, match="policy_objective='marginal' needs the loss of every option"):
        OptionConfig(estimator="gumbel", policy_objective="marginal")


@pytest.mark.parametrize(
    ("settings", "objective"),
    [({}, "marginal"), ({"prior": "policy"}, "imitation"), ({"estimator": "gumbel"}, "imitation")],
)
def test_by_default_the_policy_learns_from_the_likelihood_if_it_is_exact_and_the_prior_uniform(
    settings: dict[str, Any], objective: str
) -> None:
    losses = []
    for policy_objective in (None, objective):
        model = option_model(**settings, policy_objective=policy_objective)
        torch.manual_seed(2)
        losses.append(model.loss(counted(model)).policy_loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(
        ValueError, match=f"gumbel_temperature={temperature} (must be more than 0|is not a finite number)"
    ):
        OptionConfig(gumbel_temperature=temperature)


@pytest.mark.parametrize("estimator", ["exact", "gumbel"])
def test_the_decoders_activations_are_kept_for_a_part_of_the_positions_only(
    estimator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=3, width=8, estimator=estimator))
    ids = torch.randint(1, VOCAB, (4, 12), generator=torch.Generator().manual_seed(0))
    found = []
    for limit in (10**6, 3 * 8 * 10):  # 44 positions in one part, and in five
        monkeypatch.setattr("ollm_rl.options.adapter.MAX_ACTIVATIONS", limit)
        kept: list[int] = []

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(len(tensor) if tensor.shape[1:] == (3, 8) else 0)
            return tensor

        model.zero_grad()
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(ids, labels=ids).loss
        loss.backward()
        gradients = [weight.grad for weight in model.adapter.parameters() if weight.grad is not None]
        found.append((loss.detach(), torch.cat([gradient.flatten() for gradient in gradients]), max(kept)))
    (whole, of_whole, most), (parts, of_parts, fewer) = found
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(of_parts, of_whole, rtol=1e-4, atol=1e-6)
    assert most == 44 and 0 < fewer <= 10
