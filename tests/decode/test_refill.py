"""Slots refilled while others run, chunks of turns, running out of memory: the rollout is always the same."""

import gc
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.graphs import Graphs
from ollm_rl.decode.rollout import Rollout, collect
from ollm_rl.decode.turns import Turns
from tests.decode.test_rollout import LIMIT, PROMPTS, completions, frequent_token, policy_over, sampled
from tests.tiny_models import CONTEXT, VOCAB, greedy_generate, tiny_model


def rollout_of(
    policy: Policy, engine: DecodeEngine, prompts: list[list[int]], *, chunk: int | None = None, **changes: Any
) -> Rollout:
    given: dict[str, Any] = {"max_new_tokens": LIMIT, "end_tokens": [], "generator": torch.Generator().manual_seed(5)}
    return collect(Turns(engine, policy.act, chunk=chunk), prompts, **given | changes)


@pytest.mark.parametrize("kind", ["options", "tokens"])
@pytest.mark.parametrize(("chunk", "num_slots"), [(3, 3), (8, 4), (8, 8), (LIMIT + 5, 2)])
def test_chunks_of_turns_change_nothing(kind: str, chunk: int, num_slots: int) -> None:
    policy = policy_over(kind)
    end = frequent_token(completions(sampled(policy, PROMPTS)))
    expected = sampled(policy, PROMPTS, [end])
    engine = DecodeEngine(policy.backbone, num_slots, CONTEXT)
    for _ in range(2):  # the second time on a used engine
        found = rollout_of(policy, engine, PROMPTS, end_tokens=[end], chunk=chunk)
        assert completions(found) == completions(expected)
        for name in ("completion_mask", "decisions", "terminated"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        mask = expected.completion_mask
        torch.testing.assert_close(found.log_probs[mask], expected.log_probs[mask], rtol=1e-4, atol=1e-4)
        for name, column in expected.stored.items():
            torch.testing.assert_close(found.stored[name][mask], column[mask], rtol=1e-4, atol=1e-4)


def test_a_slot_that_ends_is_filled_immediately_and_on_a_cpu_none_is_wasted() -> None:
    policy = policy_over("tokens")
    rows = completions(sampled(policy, PROMPTS * 2))
    end = max(range(VOCAB), key=lambda token: len({row.index(token) for row in rows if token in row}))
    engine = DecodeEngine(policy.backbone, 3, CONTEXT)
    rollout = rollout_of(policy, engine, PROMPTS * 2, end_tokens=[end])
    lengths = rollout.completion_mask.sum(1)
    assert len(lengths.unique()) > 2
    assert rollout.slot_steps == int(lengths.sum()) and rollout.wasted_share == 0


def test_the_share_of_wasted_slot_steps_counts_slots_that_wait_for_the_next_check() -> None:
    policy = TokenPolicy(tiny_model("llama"), rank=0)
    rows = [greedy_generate(policy.backbone, prompt, 8) for prompt in PROMPTS[:2]]
    end = next(token for token in rows[0] if token not in rows[1])
    length = rows[0].index(end) + 1
    engine = DecodeEngine(policy.backbone, 2, CONTEXT)
    rollout = rollout_of(policy, engine, PROMPTS[:2], max_new_tokens=8, end_tokens=[end], generator=None, chunk=8)
    assert rollout.slot_steps == 16
    assert rollout.wasted_share == 1 - (length + 8) / 16


@pytest.mark.parametrize(("first", "steps"), [(3, 4 + 4), (4, 4 + 4 + 4)])
def test_while_episodes_wait_the_host_does_not_wait_for_a_chunks_last_turn(first: int, steps: int) -> None:
    policy = TokenPolicy(tiny_model("llama"), rank=0)
    ended: list[int] = []
    rollout = collect(
        Turns(DecodeEngine(policy.backbone, 1, CONTEXT), policy.act, chunk=4),
        PROMPTS[:2],
        max_new_tokens=[first, 4],
        end_tokens=[],
        on_end=lambda episodes, tokens: ended.extend(episodes),
    )
    # An episode that ends in the fourth turn is seen after the next chunk, one that ends in the third at once.
    assert rollout.slot_steps == steps
    assert completions(rollout) == [
        greedy_generate(policy.backbone, PROMPTS[0], first), greedy_generate(policy.backbone, PROMPTS[1], 4)
    ]  # fmt: skip
    assert ended == [0, 1]


def test_the_model_reads_a_groups_prompt_once_however_late_its_episodes_begin() -> None:
    policy = policy_over("options")
    engine = DecodeEngine(policy.backbone, 2, CONTEXT)
    rollout_of(policy, engine, PROMPTS[:1])  # any work of a first rollout is done here
    seen = []
    hook = policy.backbone.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    rollout_of(policy, engine, [[5, 6, 7]] * 7)
    hook.remove()
    assert [shape for shape in seen if shape[1] > 1] == [(1, 3)]
    assert sum(shape[0] for shape in seen if shape[1] == 1) == 7 * LIMIT


def test_the_cache_of_an_engine_is_released_with_it_and_does_not_wait_for_the_collector() -> None:
    policy = policy_over("tokens")
    turns = Turns(DecodeEngine(policy.backbone, 2, CONTEXT), policy.act)
    rollout = collect(turns, PROMPTS[:3], max_new_tokens=2, end_tokens=[])
    assert turns.engine.cache is not None
    stacks = [weakref.ref(stack) for stack in turns.engine.cache.stacks]
    gc.disable()
    try:
        del turns
        assert [stack() for stack in stacks] == [None] * len(stacks)
    finally:
        gc.enable()
    assert rollout.completion_mask.sum() == 6


def fail_above(engine: DecodeEngine, slots: int, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let the engine run out of memory after ``calls`` steps while more than ``slots`` slots run."""
    advance, count = engine._step._advance, [0]

    def stand_in(rows: int, length: int) -> None:
        count[0] += 1
        if engine.num_slots > slots and count[0] > calls:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (a stand-in)")
        advance(rows, length)

    monkeypatch.setattr(engine._step, "_advance", stand_in)


def test_running_out_of_memory_halves_the_slots_with_a_warning_and_changes_no_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = policy_over("options")
    end = frequent_token(completions(sampled(policy, PROMPTS)))
    expected = sampled(policy, PROMPTS, [end])
    engine = DecodeEngine(policy.backbone, 8, CONTEXT)
    fail_above(engine, 2, monkeypatch, calls=9)  # by then some episodes have ended, others not
    with pytest.warns(RuntimeWarning) as caught:
        found = rollout_of(policy, engine, PROMPTS, end_tokens=[end])
    assert [str(warning.message) for warning in caught] == [
        "out of memory with 8 slots; continuing with 4",
        "out of memory with 4 slots; continuing with 2",
    ]
    assert completions(found) == completions(expected)
    assert torch.equal(found.completion_mask, expected.completion_mask)
    assert torch.equal(found.terminated, expected.terminated)
    assert engine.num_slots == 2, "the next rollout should not fail again"


def test_episodes_whose_prompts_did_not_fit_into_memory_wait_again(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_over("options")
    expected = sampled(policy, PROMPTS)
    engine = DecodeEngine(policy.backbone, 3, CONTEXT)
    begin = engine.begin

    def stand_in(slots: Any, states: Any) -> None:
        if engine.num_slots == 3 and any(engine.lengths):  # at the prompts of a refill, not at the first ones
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (a stand-in)")
        begin(slots, states)

    monkeypatch.setattr(engine, "begin", stand_in)
    limits = [4, 8, 9, LIMIT, LIMIT, 3, 5, 6]
    with pytest.warns(RuntimeWarning, match="out of memory with 3 slots; continuing with 1"):
        found = rollout_of(policy, engine, PROMPTS, max_new_tokens=limits)
    assert completions(found) == [row[:limit] for row, limit in zip(completions(expected), limits, strict=True)]


def test_a_pass_over_prompts_that_ran_out_of_memory_is_shorter_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_over("options")
    engine = DecodeEngine(policy.backbone, 8, CONTEXT, pass_tokens=32)
    encode = engine.encode

    def stand_in(prompts: Any) -> Any:
        if engine.pass_tokens > 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (a stand-in)")
        return encode(prompts)

    monkeypatch.setattr(engine, "encode", stand_in)
    with pytest.warns(RuntimeWarning, match="continuing with 2"):
        found = rollout_of(policy, engine, PROMPTS)
    assert completions(found) == completions(sampled(policy, PROMPTS))
    assert (engine.num_slots, engine.pass_tokens) == (2, 8)


def test_out_of_memory_with_one_slot_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_over("options")
    engine = DecodeEngine(policy.backbone, 2, CONTEXT)
    fail_above(engine, 0, monkeypatch, calls=3)
    with pytest.warns(RuntimeWarning, match="continuing with 1"), pytest.raises(torch.cuda.OutOfMemoryError):
        rollout_of(policy, engine, PROMPTS)


def test_every_episode_may_have_a_limit_of_its_own() -> None:
    policy = policy_over("tokens")
    expected = completions(sampled(policy, PROMPTS))
    limits = [3, 16, 1, 7, 16, 2, 9, 4]
    engine = DecodeEngine(policy.backbone, 3, CONTEXT)
    found = rollout_of(policy, engine, PROMPTS, max_new_tokens=limits)
    assert completions(found) == [row[:limit] for row, limit in zip(expected, limits, strict=True)]


def test_prompts_that_do_not_fit_are_refused_before_anything_runs() -> None:
    policy = policy_over("options")
    engine = DecodeEngine(policy.backbone, 2, 20)
    with pytest.raises(ValueError, match="a prompt of 5 tokens and max_new_tokens=16 do not fit a slot of 20 tokens"):
        rollout_of(policy, engine, PROMPTS)
    with pytest.raises(ValueError, match="prompts is empty"):
        rollout_of(policy, engine, [])
    assert engine.cache is None


POLICY = TokenPolicy(tiny_model("llama"), rank=0)
WRITTEN: dict[tuple[int, ...], list[int]] = {}


def written(prompt: list[int], end: int) -> list[int]:
    """The tokens of ``generate`` up to and including ``end``."""
    if tuple(prompt) not in WRITTEN:
        WRITTEN[tuple(prompt)] = greedy_generate(POLICY.backbone, prompt, LIMIT)
    row = WRITTEN[tuple(prompt)]
    return row[: row.index(end) + 1] if end in row else row


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    prompts=st.lists(st.integers(0, len(PROMPTS) - 1), min_size=1, max_size=14),
    num_slots=st.integers(1, 6),
    chunk=st.integers(1, 5),
    end=st.integers(0, VOCAB - 1),
)
def test_in_any_order_of_arrivals_and_ends_each_episode_is_that_of_generate(
    prompts: list[int], num_slots: int, chunk: int, end: int
) -> None:
    asked = [PROMPTS[index] for index in prompts]
    engine = DecodeEngine(POLICY.backbone, num_slots, CONTEXT)
    found = rollout_of(POLICY, engine, asked, end_tokens=[end], generator=None, chunk=chunk)
    assert completions(found) == [written(prompt, end) for prompt in asked]
    assert found.prompts == asked
    assert found.terminated.tolist() == [written(prompt, end)[-1] == end for prompt in asked]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2"])
def test_log_probs_in_bfloat16_are_near_those_of_a_float32_pass(family: str) -> None:
    half = tiny_model(family).to(torch.bfloat16)
    policy = TokenPolicy(half, rank=0)
    rollout = rollout_of(policy, DecodeEngine(half, 3, CONTEXT), PROMPTS)
    assert rollout.log_probs.dtype == torch.float32
    exact = tiny_model(family)
    exact.load_state_dict({name: weight.float() for name, weight in half.state_dict().items()})
    gaps = []
    for row, prompt in enumerate(PROMPTS):
        ids = [*prompt, *rollout.tokens[row].tolist()]
        with torch.no_grad():
            log_probs = exact(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        places = torch.arange(len(prompt) - 1, len(ids) - 1)
        gaps.append(log_probs[places, ids[len(prompt) :]] - rollout.log_probs[row])
    # bfloat16 has 8 bits of mantissa; the weights are scaled so that logits differ by whole nats.
    assert torch.stack(gaps).abs().median() < 0.05
    assert torch.stack(gaps).abs().max() < 0.6


def test_the_turn_that_warms_a_recording_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_when_recording(
        graphs: Graphs, key: Hashable, function: Callable[[], None], moved: Sequence[torch.Tensor] = ()
    ) -> None:
        before = [tensor.clone() for tensor in moved]
        function()
        for tensor, value in zip(moved, before, strict=True):
            tensor.copy_(value)
        function()

    policy = policy_over("options")
    end = frequent_token(completions(sampled(policy, PROMPTS)))
    expected = sampled(policy, PROMPTS, [end])
    monkeypatch.setattr(Graphs, "run", as_when_recording)
    found = rollout_of(policy, DecodeEngine(policy.backbone, 3, CONTEXT), PROMPTS, end_tokens=[end], chunk=4)
    assert completions(found) == completions(expected)
    assert torch.equal(found.terminated, expected.terminated)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("kind", "compiled"), [("options", False), ("tokens", False), ("options", True)])
def test_recorded_turns_give_the_same_results_as_those_of_a_cpu(kind: str, compiled: bool) -> None:
    policy = policy_over(kind)
    end = frequent_token(completions(sampled(policy, PROMPTS)))
    expected = sampled(policy, PROMPTS, [end])
    policy.backbone.cuda()
    if kind == "options":
        getattr(policy, "_model")[0].cuda()  # noqa: B009  # mypy takes a module's attribute for a module
    policy.cuda()
    turns = Turns(DecodeEngine(policy.backbone, 3, CONTEXT, compiled=compiled), policy.act)
    for _ in range(2):  # the second time with the existing graphs
        generator = torch.Generator().manual_seed(5)
        found = collect(turns, PROMPTS, max_new_tokens=LIMIT, end_tokens=[end], generator=generator)
        assert completions(found) == completions(expected)
        mask = expected.completion_mask
        torch.testing.assert_close(found.log_probs.cpu()[mask], expected.log_probs[mask], rtol=1e-3, atol=1e-3)
