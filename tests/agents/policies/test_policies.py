"""The policies over options and over tokens: their choices, the probabilities of these, and the gradients."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.base import draw
from ollm_rl.agents.policies.loading import new_policy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import Rollout, collect
from ollm_rl.decode.turns import Turns
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.decisions import token_log_probs
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.prompts import encode_prompts
from tests.tiny_models import CONTEXT, EOS, HIDDEN, VOCAB, save_backbone, tiny_model

BELOW_ONE = 1 - 2**-24  # the largest number that torch.rand returns


def option_model(num_options: int, seed: int = 0) -> OptionModel:
    """A random plug-in whose options name different tokens."""
    torch.manual_seed(seed)
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=num_options, width=16))
    with torch.no_grad():
        model.adapter.option_embedding.mul_(10)
    return model


def fixed_policy(monkeypatch: pytest.MonkeyPatch, probs: Sequence[float], tokens: Sequence[int]) -> OptionPolicy:
    """A policy whose options have these probabilities and tokens in every state."""
    model = option_model(len(probs))
    monkeypatch.setattr(model, "option_tokens", lambda hidden: torch.tensor(tokens).expand(*hidden.shape[:-1], -1))
    policy = OptionPolicy(model)
    head = policy.policy[-1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(probs).log())
    return policy


def sampled(policy: OptionPolicy | TokenPolicy, max_new_tokens: int = 8) -> Rollout:
    prompts = [[5, 6, 7], [9], [30, 31, 32, 33, 34]]
    generator = torch.Generator().manual_seed(0)
    engine = DecodeEngine(policy.backbone, 3, CONTEXT)
    return collect(
        Turns(engine, policy.act), prompts, max_new_tokens=max_new_tokens, end_tokens=[EOS], generator=generator
    )


def shaken_lora(seed: int = 0) -> TokenPolicy:
    """A token policy whose LoRA, which normally starts at zero, already changes the output."""
    policy = TokenPolicy(tiny_model("llama"), rank=4)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    return policy


def test_options_that_lead_to_one_token_share_its_probability() -> None:
    log_probs = token_log_probs(torch.tensor([0.5, 0.2, 0.3]).log(), torch.tensor([7, 4, 7]))
    torch.testing.assert_close(log_probs, torch.tensor([0.8, 0.2, 0.8]).log())
    both = token_log_probs(torch.tensor([[2.0, 2.0], [2.0, 2.0]]), torch.tensor([[1, 1], [1, 2]]))
    torch.testing.assert_close(both, torch.tensor([[1.0, 1.0], [0.5, 0.5]]).log())


@pytest.mark.parametrize(
    ("probs", "uniform", "column"),
    [
        ([0.25, 0.5, 0.25], 0.0, 0),
        ([0.25, 0.5, 0.25], 0.2499, 0),
        ([0.25, 0.5, 0.25], 0.25, 1),  # column 0 owns [0, 0.25)
        ([0.25, 0.5, 0.25], 0.7499, 1),
        ([0.25, 0.5, 0.25], 0.75, 2),
        ([0.25, 0.5, 0.25], BELOW_ONE, 2),
        ([0.0, 1.0, 0.0], 0.0, 1),  # an impossible column is never drawn
        ([0.0, 1.0, 0.0], BELOW_ONE, 1),
        ([0.1, 0.2, 0.7], BELOW_ONE, 2),
        ([1.0, 3.0], 0.24, 0),
        ([1.0, 3.0], 0.26, 1),
    ],
)
def test_a_draw_inverts_the_distribution_function(probs: list[float], uniform: float, column: int) -> None:
    assert draw(torch.tensor([probs]), torch.tensor([uniform])).tolist() == [column]


def test_an_impossible_last_column_is_never_drawn_whatever_the_rounding() -> None:
    probs = torch.rand(2000, 7, generator=torch.Generator().manual_seed(0))
    probs[:, -1] = 0
    assert draw(probs / probs.sum(-1, keepdim=True), torch.full((2000,), BELOW_ONE)).max() == 5


def test_draws_follow_the_probabilities() -> None:
    probs = torch.tensor([0.05, 0.4, 0.2, 0.35])
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    counts = draw(probs.expand(len(uniforms), -1), uniforms).bincount(minlength=4)
    assert stats.chisquare(counts.numpy(), [1000, 8000, 4000, 7000]).pvalue > 0.001


def test_a_greedy_option_policy_votes_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = fixed_policy(monkeypatch, [0.4, 0.35, 0.25], [5, 8, 8])
    action = policy.act(torch.randn(2, HIDDEN), None)
    assert action.tokens.tolist() == [8, 8]  # the single most probable option has token 5
    torch.testing.assert_close(action.log_probs, torch.tensor([0.6, 0.6]).log())
    assert action.decisions.tolist() == [True, True]


def test_a_sampling_option_policy_draws_options_and_reports_the_tokens_probability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = fixed_policy(monkeypatch, [0.4, 0.35, 0.25], [8, 5, 8])
    action = policy.act(torch.randn(4, HIDDEN), torch.tensor([0.0, 0.39, 0.41, 0.99]))
    assert action.tokens.tolist() == [8, 8, 5, 8]
    torch.testing.assert_close(action.log_probs, torch.tensor([0.65, 0.65, 0.35, 0.65]).log())


def test_there_is_no_decision_where_all_options_name_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = fixed_policy(monkeypatch, [0.4, 0.6], [8, 8])
    action = policy.act(torch.randn(3, HIDDEN), torch.rand(3))
    assert not action.decisions.any()
    torch.testing.assert_close(action.log_probs, torch.zeros(3))


def test_entropies_are_those_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = fixed_policy(monkeypatch, [0.4, 0.35, 0.25], [5, 8, 8])
    entropies = policy.evaluate(sampled(policy)).entropies
    assert len(entropies) == 24
    expected = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    torch.testing.assert_close(entropies, torch.full((24,), expected))


def test_entropies_of_tokens_are_those_of_scipy() -> None:
    backbone = tiny_model("llama")
    policy = TokenPolicy(backbone, rank=0)
    rollout = sampled(policy, max_new_tokens=1)
    expected = []
    for prompt in rollout.prompts:
        with torch.no_grad():
            logits = backbone(torch.tensor([prompt])).logits[0, -1]
        expected.append(stats.entropy(logits.softmax(-1).numpy()))
    torch.testing.assert_close(policy.evaluate(rollout).entropies.tolist(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["options", "tokens"])
def test_evaluating_a_rollout_again_gives_the_log_probabilities_and_values_of_its_actions(kind: str) -> None:
    policy = OptionPolicy(option_model(5)) if kind == "options" else shaken_lora()
    rollout = sampled(policy)
    assert rollout.decisions.sum() > 12
    now = policy.evaluate(rollout)
    assert now.log_probs.requires_grad and now.values.requires_grad
    torch.testing.assert_close(now.log_probs, rollout.log_probs[rollout.decisions], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(now.values, rollout.values[rollout.decisions], rtol=1e-4, atol=1e-4)


def test_a_part_of_a_rollout_is_evaluated_as_in_the_whole() -> None:
    policy = shaken_lora()
    rollout = sampled(policy)
    part = rollout.select([2, 0])
    expected = rollout.log_probs[[2, 0]][rollout.decisions[[2, 0]]]
    torch.testing.assert_close(policy.evaluate(part).log_probs, expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_by_token_has_the_expectation_of_that_by_option_and_no_more_variance() -> None:
    tokens = torch.tensor([3, 3, 5, 7, 5])
    reward = {3: 1.0, 5: -0.5, 7: 0.25}
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
        rewards = torch.tensor([reward[int(token)] for token in tokens], dtype=torch.float64)
        probs = logits.softmax(-1)
        (exact,) = torch.autograd.grad((probs * rewards).sum(), logits, retain_graph=True)
        moments = {}
        for name, log_probs in (("option", logits.log_softmax(-1)), ("token", token_log_probs(logits, tokens))):
            samples = torch.stack(
                [torch.autograd.grad(log_probs[z] * rewards[z], logits, retain_graph=True)[0] for z in range(5)]
            )
            mean = (probs[:, None] * samples).sum(0)
            moments[name] = mean, (probs * (samples - mean).square().sum(-1)).sum()
        torch.testing.assert_close(moments["option"][0], exact)
        torch.testing.assert_close(moments["token"][0], exact)
        assert moments["token"][1] < moments["option"][1]


def test_an_update_of_the_token_policy_moves_the_lora_and_no_other_weight_of_the_backbone() -> None:
    policy = TokenPolicy(tiny_model("llama"), rank=4)
    rollout = sampled(policy)
    trainable = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=0.1)
    for _ in range(2):  # a LoRA's two factors: the first step moves only the one that starts at zero
        optimizer.zero_grad()
        now = policy.evaluate(rollout)
        (-now.log_probs.mean() + now.values.square().mean()).backward()
        optimizer.step()

    fresh = tiny_model("llama").state_dict()
    compared = 0
    for name, weight in policy.backbone.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(weight, fresh[name.replace(".base_layer", "")]), name
            compared += 1
    assert compared == len(fresh)
    untouched = TokenPolicy(tiny_model("llama"), rank=4)
    moved = dict(policy.named_parameters())
    lora = {name: weight for name, weight in untouched.named_parameters() if "lora_B" in name}
    assert len(lora) == 14  # seven linear layers in each of two blocks
    assert not any(torch.equal(moved[name], weight) for name, weight in lora.items())


def test_an_update_of_the_option_policy_changes_only_its_own_copy() -> None:
    model = option_model(5)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    policy = OptionPolicy(model)
    rollout = sampled(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    now = policy.evaluate(rollout)
    (-now.log_probs.mean() + now.values.square().mean()).backward()
    optimizer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    moved = [
        not torch.equal(new, old)
        for new, old in zip(policy.policy.parameters(), model.adapter.policy.parameters(), strict=True)
    ]
    assert all(moved)


def test_without_a_lora_the_token_policy_trains_only_its_value_head() -> None:
    policy = TokenPolicy(tiny_model("llama"), rank=0)
    trainable = [name for name, weight in policy.named_parameters() if weight.requires_grad]
    assert trainable and all(name.startswith("value_head.") for name in trainable)
    action = policy.act(torch.randn(3, HIDDEN), None)
    assert action.decisions.all() and action.tokens.max() < VOCAB


def test_a_lora_on_a_backbone_in_bfloat16_is_trained_in_float32() -> None:
    policy = TokenPolicy(tiny_model("llama").to(torch.bfloat16), rank=4)
    trained = {weight.dtype for weight in policy.parameters() if weight.requires_grad}
    assert trained == {torch.float32}
    assert {weight.dtype for weight in policy.parameters() if not weight.requires_grad} == {torch.bfloat16}
    rollout, kept = sampled(policy), set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-1:] == (policy.backbone.config.intermediate_size,):  # what the last product of an MLP reads
            kept.add(tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.evaluate(rollout).log_probs.sum().backward()
    assert kept == {torch.bfloat16}, "a float32 copy of every input would be kept for the backward pass"
    assert {weight.grad.dtype for weight in policy.backbone.parameters() if weight.grad is not None} == {torch.float32}
    before = [weight.detach().clone() for weight in policy.parameters() if weight.requires_grad]
    torch.optim.SGD([weight for weight in policy.parameters() if weight.requires_grad], lr=1e-6).step()
    after = [weight for weight in policy.parameters() if weight.requires_grad]
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_run_is_loaded_with_its_own_prompt(tmp_path: Path) -> None:
    model = save_backbone(tmp_path / "backbone")
    template, problem = "Q: {question} A:", Problem(id="sum", question="1+1", solution="", answer="2", language="en")
    config = RLConfig(out=tmp_path / "run", model=model, action_space="tokens", prompt_template=template)
    _, tokenizer = new_policy(config, torch.device("cpu"))
    assert tokenizer.decode(encode_prompts([problem], tokenizer, max_length=64)[0]) == "Q: 1+1 A:"
