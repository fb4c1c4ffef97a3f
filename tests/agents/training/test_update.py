"""One iteration's update: passes within their tokens, memory that runs out, the entropy bonus and the KL penalty."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.base import Evaluation
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.agents.training.batches import UpdateBatch
from ollm_rl.agents.training.replay import Replay
from ollm_rl.agents.training.update import Penalties, Updater
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import Rollout, collect
from ollm_rl.decode.turns import Turns
from ollm_rl.errors import UsageError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.tiny_models import CONTEXT, EOS, tiny_model

PROMPTS = [[5, 6, 7], [9], [30, 31, 32, 33, 34], [8, 8]]


def config(**changes: Any) -> RLConfig:
    settings: dict[str, Any] = {"out": Path("unused"), "model": "unused", "episodes": 4, "group_size": 2}
    return RLConfig(**settings | {"minibatches": 1, "learning_rate": 1e-2} | changes)


def options_policy() -> OptionPolicy:
    torch.manual_seed(0)
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=4, width=16))
    with torch.no_grad():
        model.adapter.option_embedding.mul_(10)
    return OptionPolicy(model)


def token_policy() -> TokenPolicy:
    torch.manual_seed(0)
    return TokenPolicy(tiny_model("llama"), rank=4)


def rollout_of(policy: OptionPolicy | TokenPolicy) -> Rollout:
    engine = DecodeEngine(policy.backbone, 4, CONTEXT)
    generator = torch.Generator().manual_seed(0)
    return collect(
        Turns(engine, policy.act), PROMPTS, max_new_tokens=[3, 8, 5, 1], end_tokens=[EOS], generator=generator
    )


def update(policy: OptionPolicy | TokenPolicy, settings: RLConfig) -> tuple[Updater, dict[str, float]]:
    rollout = rollout_of(policy)
    updater = Updater(policy, settings)
    generator = torch.Generator().manual_seed(0)
    penalties = Penalties(settings.ent_coef, settings.kl_coef)
    rewards = torch.tensor([1.0, 0, 0, 1])
    return updater, updater.run(rollout, rewards, iteration=0, penalties=penalties, generator=generator)


def weights(policy: OptionPolicy | TokenPolicy) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in policy.parameters() if weight.requires_grad]


def test_passes_hold_episodes_of_like_length_within_their_tokens() -> None:
    policy = token_policy()
    rollout, nothing = rollout_of(policy), torch.zeros(4, 8)
    updater = Updater(policy, config(pass_tokens=22))
    counts = [3, 8, 5, 1]
    batch = UpdateBatch(rollout, nothing, nothing, lengths=counts, num_decisions=counts)
    # Lengths with prompts: 6, 9, 10 and 3. The two short ones take 2 * 6 = 12 tokens; a third would make it 3 * 9.
    assert updater.passes(batch, [0, 1, 2, 3]) == [[3, 0], [1, 2]]
    updater.pass_tokens = None
    assert updater.passes(batch, [0, 1, 2, 3]) == [[3, 0, 1, 2]]
    idle = replace(batch, num_decisions=[3, 0, 5, 1])  # nothing to learn from the second
    assert updater.passes(idle, [0, 1, 2, 3]) == [[3, 0, 2]]


@pytest.mark.parametrize("make", [options_policy, token_policy])
@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_the_size_of_a_pass_does_not_change_the_update(make: Any, algorithm: str) -> None:
    whole, parts = make(), make()
    _, terms = update(whole, config(algorithm=algorithm, kl_coef=0.1, ent_coef=0.1))
    _, others = update(parts, config(algorithm=algorithm, kl_coef=0.1, ent_coef=0.1, pass_tokens=10))
    assert terms == pytest.approx(others, rel=1e-3, abs=1e-5)
    for one, other in zip(weights(whole), weights(parts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_step_on_episodes_without_a_decision_moves_nothing_and_its_terms_are_on_the_device() -> None:
    policy = token_policy()
    before, nothing = weights(policy), torch.zeros(4, 8)
    updater = Updater(policy, config())
    updater.device = torch.device("meta")  # stands for a GPU
    batch = UpdateBatch(rollout_of(policy), nothing, nothing, lengths=[3, 8, 5, 1], num_decisions=[0] * 4)
    terms = updater.step(batch, range(4), Penalties(0.0, 0.0))
    assert {term.device.type for term in terms.values()} == {"meta"}
    assert all(map(torch.equal, weights(policy), before))


def test_when_memory_runs_out_the_step_is_repeated_in_halved_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, tight = token_policy(), token_policy()
    update(undisturbed, config())
    seen: list[int] = []
    whole = TokenPolicy.evaluate

    def evaluate(self: TokenPolicy, rollout: Rollout, **settings: Any) -> Evaluation:
        seen.append(len(rollout.prompts))
        if len(rollout.prompts) > 2:
            raise torch.cuda.OutOfMemoryError
        return whole(self, rollout, **settings)

    monkeypatch.setattr(TokenPolicy, "evaluate", evaluate)
    with pytest.warns(RuntimeWarning, match="out of memory in a pass of 40 tokens; continuing with pass_tokens=20"):
        updater, _ = update(tight, config())
    assert seen == [4, 2, 2]
    assert updater.pass_tokens == 20
    for one, other in zip(weights(undisturbed), weights(tight), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_passes_that_cannot_be_smaller_are_recorded_no_more_when_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded: list[int | None] = []
    whole = TokenPolicy.evaluate

    def record(self: Updater, tokens: int | None) -> None:
        recorded.append(tokens)
        self._recorded = tokens is not None

    def evaluate(self: TokenPolicy, rollout: Rollout, **settings: Any) -> Evaluation:
        if recorded[-1] is not None:
            raise torch.cuda.OutOfMemoryError
        return whole(self, rollout, **settings)

    monkeypatch.setattr(Updater, "_record_passes", record)
    monkeypatch.setattr(TokenPolicy, "evaluate", evaluate)
    with pytest.warns(RuntimeWarning) as warned:
        updater, _ = update(token_policy(), config(pass_tokens=80))
    # A recorded pass holds 80 tokens, though the episodes have 40 with padding; the longest has 10.
    assert recorded == [80, 40, 20, 10, None]
    assert "out of memory in a pass of 80 tokens; continuing with pass_tokens=40" in str(warned[0].message)
    assert "10 tokens; continuing with passes that are not recorded as CUDA graphs" in str(warned[-1].message)
    assert updater.pass_tokens == 10


def test_a_single_episode_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(*_: Any, **__: Any) -> Evaluation:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(TokenPolicy, "evaluate", evaluate)
    with pytest.raises(torch.cuda.OutOfMemoryError), pytest.warns(RuntimeWarning):
        update(token_policy(), config())


@pytest.mark.parametrize("make", [options_policy, token_policy])
def test_the_kl_is_zero_at_the_start_and_its_penalty_keeps_the_policy_near_the_reference(make: Any) -> None:
    distances = []
    for kl_coef in (1e-9, 10.0):
        policy = make()
        before = weights(policy)
        _, terms = update(policy, config(kl_coef=kl_coef, epochs=1))
        assert terms["kl"] == pytest.approx(0, abs=1e-6)
        _, terms = update(policy, config(kl_coef=kl_coef, epochs=12))
        assert terms["kl"] > 0
        distances.append(terms["kl"])
        assert any(not torch.equal(one, other) for one, other in zip(before, weights(policy), strict=True))
    assert distances[1] < 0.7 * distances[0]


def test_the_reference_of_a_lora_is_the_backbone_without_it() -> None:
    policy = token_policy()
    rollout = rollout_of(policy)
    at_first = policy.evaluate(rollout).log_probs.detach()
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    now = policy.evaluate(rollout, reference=True)
    assert now.reference is not None
    torch.testing.assert_close(now.reference, at_first)
    assert float((now.log_probs - at_first).abs().max()) > 0.01
    assert now.log_probs.requires_grad
    assert not now.reference.requires_grad


@pytest.mark.parametrize(
    ("name", "target", "measured", "expected"),
    [
        ("entropy", None, 0.5, 0.01),
        ("entropy", 1.0, 0.5, 0.01 * math.exp(0.05)),  # half of the target is missing
        ("entropy", 1.0, 1.0, 0.01),
        ("entropy", 1.0, 9.0, 0.01 * math.exp(-0.1)),  # the error counts as 1 at most
        ("kl", None, 0.5, 0.01),
        ("kl", 1.0, 0.5, 0.01 * math.exp(-0.05)),
        ("kl", 1.0, 9.0, 0.01 * math.exp(0.1)),
    ],
)
def test_the_bonus_grows_below_its_entropy_and_the_penalty_above_its_kl(
    name: str, target: float | None, measured: float, expected: float
) -> None:
    settings = {"entropy": {"target_entropy": target}, "kl": {"kl_target": target}}[name]
    both = config(ent_coef=0.01, kl_coef=0.01, **settings)
    penalties = Penalties.of_iteration(both, {name: measured, "ent_coef": 0.01, "kl_coef": 0.01})
    found, other = penalties if name == "entropy" else reversed(penalties)
    assert found == pytest.approx(expected)
    assert other == 0.01, "without a target it stays"


def test_penalties_stay_within_their_bounds_and_begin_as_given() -> None:
    steered = config(ent_coef=1.0, target_entropy=1.0, kl_coef=1e-5, kl_target=1.0)
    assert Penalties.of_iteration(steered, {}) == (1.0, 1e-5)
    assert Penalties.of_iteration(steered, {"entropy": 0.0, "kl": 0.0, "ent_coef": 1.0, "kl_coef": 1e-5}) == (1.0, 1e-5)


@pytest.mark.parametrize("make", [options_policy, token_policy])
def test_a_replay_learns_from_the_episodes_of_the_last_iterations_too(make: Any) -> None:
    policy = make()
    settings = config(ratio="topr", replay=2, replay_steps=3, episodes=4)
    updater = Updater(policy, settings)
    seen: list[int] = []
    step = updater.step

    def counted(batch: UpdateBatch, rows: Sequence[int], penalties: Penalties) -> dict[str, torch.Tensor]:
        seen.append(len(rows))
        return step(batch, rows, penalties)

    updater.step = counted  # type: ignore[method-assign]
    for iteration in range(4):
        updater.run(
            rollout_of(policy),
            torch.tensor([1.0, 0, 0, 1]),
            iteration=iteration,
            penalties=Penalties(0.0, 0.0),
            generator=torch.Generator().manual_seed(iteration),
        )
    assert seen == [4] * 16, "one step on the new episodes and three on as many of the replay"
    assert list(updater.replay.batches) == [2, 3]


def test_a_sample_of_a_replay_is_one_batch_of_episodes_of_several_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    replay, policy = Replay(2), token_policy()
    for iteration, shift in ((0, 0.0), (1, 100.0)):
        numbers = torch.arange(32.0).view(4, 8) + shift
        lengths = [3, 8, 5, 1] if iteration else [2, 1, 4, 3]
        batch = UpdateBatch(rollout_of(policy), numbers, -numbers, lengths=lengths, num_decisions=lengths[::-1])
        replay.add(iteration, batch)
    # Of the 8 episodes the last of iteration 0, and of iteration 1 the second and the first.
    monkeypatch.setattr(torch, "randperm", lambda count, generator: torch.tensor([5, 3, 4, 0, 1, 2, 6, 7]))
    sample = replay.sample(3, torch.Generator())
    assert sample.lengths == [3, 8, 3] and sample.num_decisions == [2, 5, 1]
    assert sample.advantages.tolist() == [
        [24, 25, 26, 0, 0, 0, 0, 0],
        [108, 109, 110, 111, 112, 113, 114, 115],
        [100, 101, 102, 103, 104, 105, 106, 107],
    ]
    assert torch.equal(sample.returns, -sample.advantages)
    one, other = (batch.rollout for batch in replay.batches.values())
    assert sample.rollout.prompts == [one.prompts[3], other.prompts[1], other.prompts[0]]
    assert sample.rollout.tokens[0, :3].tolist() == one.tokens[3, :3].tolist()
    assert sample.rollout.tokens[1:].tolist() == other.tokens[[1, 0]].tolist()
    assert len(replay.sample(100, torch.Generator()).lengths) == 8


def test_a_replay_that_does_not_fit_is_refused_with_the_memory_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollm_rl.agents.training.replay.free_memory", lambda device: 0)
    with pytest.raises(UsageError, match=r"replay=3 iterations need 0\.0 GiB more, but 0\.0 GiB are free; lower it"):
        update(options_policy(), config(ratio="topr", replay=3))


def test_episodes_of_a_group_of_equal_rewards_are_evaluated_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []
    whole = TokenPolicy.evaluate

    def evaluate(self: TokenPolicy, rollout: Rollout, **settings: Any) -> Evaluation:
        seen.append((len(rollout.prompts), torch.is_grad_enabled()))
        return whole(self, rollout, **settings)

    monkeypatch.setattr(TokenPolicy, "evaluate", evaluate)
    # With the real cost a second pass for so few tokens would not pay.
    monkeypatch.setattr("ollm_rl.agents.training.passes.GRADIENT_COST", 100)
    results = []
    for ent_coef in (0.0, 1e-30):  # a bonus too small to change a number, which gives every episode a gradient
        policy = token_policy()
        updater = Updater(policy, config(algorithm="reinforce", baseline="group"))
        for rewards in ([1.0, 0, 1, 1], [1.0, 1, 0, 0]):  # in the end nothing has an advantage
            terms = updater.run(
                rollout_of(policy),
                torch.tensor(rewards),
                iteration=0,
                penalties=Penalties(ent_coef, 0.0),
                generator=torch.Generator().manual_seed(0),
            )
        results.append((weights(policy), terms))
    assert seen == [(2, True), (2, False), (4, True), (4, True), (4, True)]
    (found, terms), (expected, others) = results
    assert terms == pytest.approx(others, rel=1e-4, abs=1e-6)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_episodes_that_teach_nothing_share_the_passes_of_others_where_passes_of_their_own_take_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = token_policy()
    rollout, nothing = rollout_of(policy), torch.zeros(4, 8)
    advantages = nothing.clone()
    advantages[[0, 2]] = 1.0
    counts = [3, 8, 5, 1]  # with their prompts 6, 9, 10 and 3 tokens
    batch = UpdateBatch(rollout, advantages, nothing, lengths=counts, num_decisions=counts)
    updater = Updater(policy, config(algorithm="reinforce", baseline="group"))
    plans = {}
    # Apart 2 * (start + 2 * 10) + start + 2 * 9, jointly 2 * (start + 4 * 10): equal at a start of 22 tokens.
    for updater.overhead in (21, 23):
        plans[updater.overhead] = updater._passes_to_take(batch, [0, 1, 2, 3], Penalties(0.0, 0.0))
    assert [(rows, teaches) for rows, teaches in plans[21]] == [([0, 2], True), ([3, 1], False)]
    assert [(rows, teaches) for rows, teaches in plans[23]] == [([3, 0, 1, 2], True)]
    results = []
    for plan in plans.values():
        monkeypatch.setattr(updater, "_passes_to_take", lambda *_, plan=plan: plan)
        terms = updater._gradient(batch, [0, 1, 2, 3], Penalties(0.0, 0.0))
        gradients = [weight.grad for weight in policy.parameters() if weight.grad is not None]
        results.append((torch.stack(list(terms.values())), torch.cat([gradient.flatten() for gradient in gradients])))
    (apart, of_apart), (joint, of_joint) = results
    torch.testing.assert_close(joint, apart)
    torch.testing.assert_close(of_joint, of_apart, rtol=1e-4, atol=1e-6)
