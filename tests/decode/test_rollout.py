"""The rollout loop: the tokens of Hugging Face's ``generate``, and samples that depend only on their own row."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch

from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import Rollout, collect
from ollm_rl.decode.turns import Turns
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.tiny_models import CONTEXT, EOS, greedy_generate, tiny_model

PROMPTS = [[5, 6, 7], [9], [30, 31, 32, 33, 34], [5, 6, 7], [61, 12], [9, 9, 9], [44, 3, 21, 60], [80]]
LIMIT = 16


def policy_over(kind: str) -> OptionPolicy | TokenPolicy:
    if kind == "tokens":
        return TokenPolicy(tiny_model("llama"), rank=0)
    torch.manual_seed(0)
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=5, width=16))
    with torch.no_grad():
        model.adapter.option_embedding.mul_(10)
    return OptionPolicy(model)


def sampled(policy: Policy, prompts: list[list[int]], end_tokens: Sequence[int] = (), num_slots: int = 99) -> Rollout:
    return collect(
        Turns(DecodeEngine(policy.backbone, num_slots, CONTEXT), policy.act),
        prompts,
        max_new_tokens=LIMIT,
        end_tokens=end_tokens,
        generator=torch.Generator().manual_seed(5),
    )


def completions(rollout: Rollout) -> list[list[int]]:
    lengths = rollout.completion_mask.sum(1).tolist()
    return [row[:length] for row, length in zip(rollout.tokens.tolist(), lengths, strict=True)]


def frequent_token(rows: list[list[int]]) -> int:
    """A token that ends some but not all rows, as far from their beginning as possible."""

    def first_places(token: int) -> list[int]:
        return [row.index(token) for row in rows if token in row]

    candidates = [t for t in {token for row in rows for token in row} if 2 <= len(first_places(t)) < len(rows)]
    return max(candidates, key=lambda token: min(first_places(token)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("num_slots", [3, 8])
def test_greedy_completions_are_those_of_generate(family: str, num_slots: int) -> None:
    backbone = tiny_model(family)
    expected = [greedy_generate(backbone, prompt, LIMIT) for prompt in PROMPTS]
    end = frequent_token(expected)
    cut = [row[: row.index(end) + 1] if end in row else row for row in expected]
    policy = TokenPolicy(backbone, rank=0)
    engine = DecodeEngine(backbone, num_slots, CONTEXT)
    rollout = collect(Turns(engine, policy.act), PROMPTS, max_new_tokens=LIMIT, end_tokens=[end])
    assert completions(rollout) == cut
    assert rollout.terminated.tolist() == [end in row for row in expected]
    assert rollout.prompts == PROMPTS


@pytest.mark.parametrize("kind", ["options", "tokens"])
def test_a_compiled_rollout_is_the_same_rollout(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The traced graph runs uncompiled, so no compiler is needed. A graph break is an error.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    policy = policy_over(kind)
    generator = torch.Generator().manual_seed(5)
    engine = DecodeEngine(policy.backbone, 99, CONTEXT, compiled=True)
    compiled = collect(Turns(engine, policy.act), PROMPTS, max_new_tokens=LIMIT, end_tokens=[], generator=generator)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1, "the model's and the policy's"
    assert completions(compiled) == completions(sampled(policy, PROMPTS))


@pytest.mark.parametrize("kind", ["options", "tokens"])
def test_samples_do_not_depend_on_the_number_of_slots(kind: str) -> None:
    policy = policy_over(kind)
    end = frequent_token(completions(sampled(policy, PROMPTS)))
    whole = sampled(policy, PROMPTS, [end])
    assert 0 < whole.terminated.sum() < len(PROMPTS)
    assert len(set(map(tuple, completions(whole)))) > 5
    for num_slots in (1, 3):
        part = sampled(policy, PROMPTS, [end], num_slots)
        assert completions(part) == completions(whole)
        for name in ("completion_mask", "decisions", "terminated"):
            assert torch.equal(getattr(part, name), getattr(whole, name)), name
        for name in ("log_probs", "values"):
            found, expected = (getattr(rollout, name)[whole.completion_mask] for rollout in (part, whole))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert part.stored.keys() == whole.stored.keys()
        for name, expected in whole.stored.items():
            mask = whole.completion_mask
            torch.testing.assert_close(part.stored[name][mask], expected[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["options", "tokens"])
def test_a_rows_sample_does_not_depend_on_the_other_rows(kind: str) -> None:
    policy = policy_over(kind)
    first = completions(sampled(policy, PROMPTS))
    other = completions(sampled(policy, [[1, 2], *PROMPTS[1:4], *[[70] * 9] * 4]))
    assert other[1:4] == first[1:4]
    assert other[4] != first[4]


def test_equal_generators_give_equal_rollouts_and_rows_of_one_prompt_differ() -> None:
    policy = policy_over("tokens")
    first, again = (completions(sampled(policy, [[5, 6]] * 6)) for _ in range(2))
    assert first == again
    assert len(set(map(tuple, first))) == 6


@pytest.mark.parametrize("kind", ["options", "tokens"])
def test_masks_end_with_the_end_of_text_or_at_the_token_limit(kind: str) -> None:
    policy = policy_over(kind)
    end = frequent_token(completions(sampled(policy, PROMPTS)))
    rollout = sampled(policy, PROMPTS, [end])
    assert rollout.tokens.shape == (len(PROMPTS), LIMIT)
    for row, mask, terminated in zip(rollout.tokens, rollout.completion_mask, rollout.terminated, strict=True):
        length = int(mask.sum())
        assert mask.tolist() == [True] * length + [False] * (LIMIT - length)
        written = row[:length].tolist()
        assert end not in written[:-1]
        assert (written[-1] == end) == bool(terminated)
        assert terminated or length == LIMIT
    assert not (rollout.decisions & ~rollout.completion_mask).any()


@pytest.mark.parametrize("num_slots", [3, 8])
def test_every_episode_is_passed_on_once_when_it_ends(num_slots: int) -> None:
    policy = policy_over("tokens")
    end = frequent_token(completions(sampled(policy, PROMPTS)))
    calls: list[tuple[list[int], list[list[int]]]] = []
    rollout = collect(
        Turns(DecodeEngine(policy.backbone, num_slots, CONTEXT), policy.act),
        PROMPTS,
        max_new_tokens=LIMIT,
        end_tokens=[end],
        generator=torch.Generator().manual_seed(5),
        on_end=lambda episodes, tokens: calls.append((episodes, tokens)),
    )
    assert len(calls) > 1  # some end while others continue
    passed_on = {episode: row for episodes, rows in calls for episode, row in zip(episodes, rows, strict=True)}
    assert sum(len(episodes) for episodes, _ in calls) == len(passed_on) == len(PROMPTS)
    assert [passed_on[episode] for episode in range(len(PROMPTS))] == completions(rollout)


def test_every_wait_for_the_device_can_be_used_once_ended_episodes_are_passed_on() -> None:
    policy = policy_over("tokens")
    calls: list[str] = []
    collect(
        Turns(DecodeEngine(policy.backbone, 2, CONTEXT), policy.act),
        PROMPTS[:2],
        max_new_tokens=[1, 3],
        end_tokens=[EOS],
        generator=torch.Generator().manual_seed(5),
        on_end=lambda episodes, tokens: calls.append(f"end {episodes}"),
        on_wait=lambda is_over: calls.append(f"wait, over: {is_over()}"),
    )
    wait = "wait, over: True"  # on a CPU
    assert calls == [wait, "end [0]", wait, wait, "end [1]"]


def test_an_end_of_text_at_the_token_limit_terminates() -> None:
    policy = policy_over("tokens")
    last = completions(sampled(policy, [[5, 6, 7]]))[0][-1]
    rollout = sampled(policy, [[5, 6, 7]], end_tokens=[last])
    shorter = completions(rollout)[0].index(last) + 1
    limited = collect(
        Turns(DecodeEngine(policy.backbone, 1, CONTEXT), policy.act),
        [[5, 6, 7]],
        max_new_tokens=shorter,
        end_tokens=[last],
        generator=torch.Generator().manual_seed(5),
    )
    assert limited.terminated.tolist() == [True]
    assert limited.completion_mask.tolist() == [[True] * shorter]


def by_hand() -> Rollout:
    """Two episodes: prompt 1 2 3 with completion 4 5 (ended), prompt 6 with completion 7 8 9 (at the limit)."""
    return Rollout(
        prompts=[[1, 2, 3], [6]],
        tokens=torch.tensor([[4, 5, 99], [7, 8, 9]]),
        completion_mask=torch.tensor([[True, True, False], [True, True, True]]),
        decisions=torch.tensor([[False, True, False], [True, False, True]]),
        log_probs=torch.tensor([[-1.0, -2, -99], [-3, -4, -5]]),
        values=torch.tensor([[0.1, 0.2, 99], [0.3, 0.4, 0.5]]),
        terminated=torch.tensor([True, False]),
        stored={"option_tokens": torch.arange(12).view(2, 3, 2)},
    )


def test_sequences_join_prompt_and_completion() -> None:
    input_ids, where = by_hand().sequences()
    assert input_ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]]  # as wide as the longest, 3 + 2 tokens
    assert where.tolist() == [[2, 3, 4], [0, 1, 2]]


def test_taken_episodes_are_cut_to_the_longest_of_them() -> None:
    taken = by_hand().select([0])
    assert taken.prompts == [[1, 2, 3]]
    assert taken.tokens.tolist() == [[4, 5]]
    assert taken.completion_mask.tolist() == [[True, True]]
    assert taken.decisions.tolist() == [[False, True]]
    assert taken.log_probs.tolist() == [[-1, -2]]
    torch.testing.assert_close(taken.values, torch.tensor([[0.1, 0.2]]))
    assert taken.terminated.tolist() == [True]
    assert taken.stored["option_tokens"].tolist() == [[[0, 1], [2, 3]]]


def test_episodes_are_taken_in_the_requested_order() -> None:
    taken = by_hand().select([1, 0])
    assert taken.prompts == [[6], [1, 2, 3]]
    assert taken.tokens.tolist() == [[7, 8, 9], [4, 5, 99]]
    assert taken.terminated.tolist() == [False, True]


def part(tokens: list[list[int]], lengths: list[int]) -> Rollout:
    """A rollout of made-up numbers: log-probabilities are -token, values 10 * token, states (token, 1)."""
    written = torch.tensor(tokens)
    mask = torch.arange(written.shape[1]) < torch.tensor(lengths)[:, None]
    numbers = written.float()
    return Rollout(
        prompts=[[7] * length for length in lengths],
        tokens=written,
        completion_mask=mask,
        decisions=mask & (written > 2),
        log_probs=-numbers,
        values=10 * numbers,
        terminated=torch.tensor([length == 1 for length in lengths]),
        stored={"hidden_states": torch.stack([numbers, torch.ones_like(numbers)], -1).bfloat16()},
        slot_steps=len(tokens),
    )


def test_joined_parts_are_padded_to_the_longest_completion() -> None:
    whole = Rollout.join([part([[1], [2]], [1, 1]), part([[3, 4, 5], [6, 0, 0]], [3, 1])])
    assert whole.prompts == [[7], [7], [7, 7, 7], [7]]
    assert whole.tokens.tolist() == [[1, 0, 0], [2, 0, 0], [3, 4, 5], [6, 0, 0]]
    assert whole.completion_mask.sum(1).tolist() == [1, 1, 3, 1]
    assert whole.decisions.tolist() == [[False] * 3, [False] * 3, [True] * 3, [True, False, False]]
    assert whole.log_probs[2].tolist() == [-3, -4, -5]
    assert whole.values[:, 0].tolist() == [10, 20, 30, 60]
    assert whole.terminated.tolist() == [True, True, False, True]
    hidden = whole.stored["hidden_states"]
    assert hidden.dtype == torch.bfloat16
    assert hidden[0].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert hidden[2].tolist() == [[3, 1], [4, 1], [5, 1]]
    assert whole.slot_steps == 4
