"""Forks, snapshots, bounded passes over prompts, and memory: the content of a slot is exact whatever its origin."""

from typing import Any, NamedTuple

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.memory import free_memory
from ollm_rl.decode.prompt_store import PromptStore
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.decode.test_engine import MODELS, assert_same, feed, random_ids
from tests.tiny_models import FAMILIES, VOCAB, full_hidden_states, greedy_generate, tiny_model

GREEDY = [family for family in FAMILIES if family != "mistral"]


@pytest.fixture(params=MODELS, ids=lambda param: "-".join(filter(None, param)))
def backbone(request: pytest.FixtureRequest) -> PreTrainedModel:
    family, attention = request.param
    return tiny_model(family, attention=attention)


def greedy(engine: DecodeEngine, count: int) -> list[list[int]]:
    """``count`` tokens in every occupied slot, the first from what ``engine.hidden`` is now."""
    model = OptionModel(engine.backbone, OptionConfig(num_options=2, width=8))
    slots = len(engine.lengths)
    columns = []
    for step in range(count):
        tokens = model.lm_logits(engine.hidden[:slots]).argmax(-1)
        columns.append(tokens.tolist())
        if step < count - 1:
            engine.step(tokens)
    return [list(row) for row in zip(*columns, strict=True)]


def test_forks_diverge_and_each_continues_independently(backbone: PreTrainedModel) -> None:
    prompts, continuations = random_ids(12, 5), random_ids(20, 20, 20, seed=1)
    engine, alone = DecodeEngine(backbone, 4, 48), DecodeEngine(backbone, 3, 48)
    hidden = engine.prefill([1, 2], prompts)
    forked = engine.fork(1, [3, 0])
    assert torch.equal(forked, hidden[[0, 0]])
    assert engine.lengths == [12, 12, 5, 12]
    alone.prefill([0, 1, 2], [prompts[0]] * 3)
    found = feed(engine, [0, 1, 3], continuations, 0)
    assert_same(found, feed(alone, [0, 1, 2], continuations, 0))
    for row, ids in enumerate(continuations):
        expected = full_hidden_states(backbone, [*prompts[0], *ids])[12:]
        torch.testing.assert_close(found[:, row], expected, rtol=1e-4, atol=1e-4)


def test_a_restored_slot_continues_token_for_token(backbone: PreTrainedModel) -> None:
    prompts = random_ids(3, 14, 8)
    engine, other = DecodeEngine(backbone, 3, 64), DecodeEngine(backbone, 2, 48)
    engine.prefill(range(3), prompts)
    greedy(engine, 6)  # appends 5 tokens to each
    saved = engine.snapshot([2, 1])
    first = greedy(engine, 12)
    for _ in range(2):  # a snapshot can be restored several times
        engine.restore(saved, [0, 1])
        engine.release(2)
        assert engine.lengths == [13, 19, 0]
        assert greedy(engine, 12)[:2] == [first[2], first[1]]
    hidden = other.restore(saved, [0], rows=[1])
    assert torch.equal(hidden, saved.hidden[[1]])
    assert greedy(other, 12)[0] == first[1]


def test_a_slot_cannot_be_cropped_to_more_than_it_holds() -> None:
    engine = DecodeEngine(tiny_model("llama"), 1, 6)
    engine.prefill([0], random_ids(5))
    with pytest.raises(ValueError, match="length=6 is not within 1 to 5, the tokens of slot 0"):
        engine.crop(0, 6)
    assert engine.lengths == [5]


def test_a_snapshot_does_not_change_with_the_slot_it_was_taken_from() -> None:
    engine = DecodeEngine(tiny_model("llama"), 1, 48)
    engine.prefill([0], random_ids(9))
    saved = engine.snapshot([0])
    before = [states.clone() for states in saved.states]
    greedy(engine, 10)
    engine.prefill([0], random_ids(20, seed=3))
    assert all(torch.equal(*pair) for pair in zip(before, saved.states, strict=True))


@pytest.mark.parametrize("pass_tokens", [1, 7, 20, 40])
def test_prompts_encoded_in_passes_and_pieces_agree_with_one_pass(backbone: PreTrainedModel, pass_tokens: int) -> None:
    prompts, continuations = random_ids(3, 23, 1, 10, 23), random_ids(*[9] * 5, seed=1)
    seen = []
    whole, bounded = DecodeEngine(backbone, 5, 40), DecodeEngine(backbone, 5, 40, pass_tokens=pass_tokens)
    expected = whole.prefill(range(5), prompts)
    hook = backbone.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    found = bounded.prefill(range(5), prompts)
    hook.remove()
    assert max(seen) <= pass_tokens and len(seen) > 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    rest = feed(bounded, range(5), continuations, 0)
    torch.testing.assert_close(rest, feed(whole, range(5), continuations, 0), rtol=1e-4, atol=1e-4)


def test_a_prompt_is_encoded_once_for_all_its_slots_and_in_a_pass_with_upcoming_prompts() -> None:
    backbone = tiny_model("llama")
    engine = DecodeEngine(backbone, 3, 32)
    one, two, three = random_ids(4, 6, 5)
    seen = []
    hook = backbone.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    store = PromptStore(engine)
    store.fill([0, 1], [one, one], [two])
    store.fill([2], [one], [three])
    store.fill([0], [two])
    hidden = engine.hidden[:1].clone()
    assert seen == [(2, 6)]
    store.fill([1], [three])
    hook.remove()
    assert seen == [(2, 6), (1, 5)]
    torch.testing.assert_close(hidden[0], full_hidden_states(backbone, two)[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_a_step_reads_keys_once_for_the_heads_that_share_them(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_model(family)
    engine = DecodeEngine(backbone, 3, 32)
    engine.prefill(range(3), random_ids(3, 5, 4))
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(tuple(key.shape))
        return attention(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    engine.step(torch.tensor([5, 6, 7]))
    assert seen == [(3, 2, 32, 8)] * 2  # 4 heads share 2; 2 layers
    assert backbone.config._attn_implementation == "sdpa"


def test_slots_that_are_not_occupied_cannot_be_saved_or_forked() -> None:
    engine = DecodeEngine(tiny_model("llama"), 2, 8)
    engine.prefill([0], random_ids(3))
    with pytest.raises(ValueError, match="slot 1 is not occupied; prefill it first"):
        engine.snapshot([0, 1])
    with pytest.raises(ValueError, match="slot 1 is not occupied"):
        engine.fork(1, [0])
    saved = engine.snapshot([0])
    with pytest.raises(ValueError, match="2 slots cannot be filled from 1 saved ones"):
        engine.restore(saved, [0, 1])
    with pytest.raises(ValueError, match="a saved slot of 3 tokens does not fit slots of 2"):
        DecodeEngine(engine.backbone, 1, 2).restore(saved, [0])


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_token_out_of_range_moves_no_slot(token: int) -> None:
    backbone = tiny_model("llama")
    engine, undisturbed = DecodeEngine(backbone, 2, 16), DecodeEngine(backbone, 2, 16)
    for each in (engine, undisturbed):
        each.prefill([0, 1], random_ids(3, 5))
    with pytest.raises(ValueError, match=f"token {token} of slot 1 is out of range; tokens go from 0 to {VOCAB - 1}"):
        engine.step(torch.tensor([5, token]))
    with pytest.raises(ValueError, match=f"a prompt's token {token} is out of range"):
        engine.prefill([1], [[5, token]])
    with pytest.raises(ValueError, match="a prompt of 16 tokens does not fit a slot of 16"):
        engine.prefill([1], [[5] * 16])
    assert torch.equal(engine.step(torch.tensor([5, 6])), undisturbed.step(torch.tensor([5, 6])))
    engine.release(1)
    engine.step(torch.tensor([5, token]))  # an idle slot's token does not matter
    assert engine.lengths == [5, 0]


def test_more_slots_than_fit_are_refused_before_anything_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two layers of 2 key and 2 value heads of 8 float32 numbers: 256 bytes per token, 16 KiB a slot of 64.
    class Memory(NamedTuple):
        available: int = 20 * 16 * 1024

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    DecodeEngine(tiny_model("llama"), 16, 64)
    with pytest.raises(ValueError, match="num_slots=17 of 64 tokens need .* the largest batch that fits is 16$"):
        DecodeEngine(tiny_model("llama"), 17, 64)


def test_free_memory_of_a_gpu_counts_what_torch_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    assert free_memory(torch.device("cuda")) == 1200


def test_freed_slots_are_filled_again() -> None:
    backbone = tiny_model("llama")
    engine, fresh = DecodeEngine(backbone, 4, 16), DecodeEngine(backbone, 2, 16)
    engine.prefill(range(4), random_ids(3, 5, 4, 6))
    engine.free(2)
    assert engine.cache is None and engine.lengths == [0, 0]
    prompts = random_ids(7, 2, seed=1)
    assert torch.equal(engine.prefill([0, 1], prompts), fresh.prefill([0, 1], prompts))
    with pytest.raises(ValueError, match="num_slots=4 is not within 1 to 2"):
        engine.free(4)
    assert engine.num_slots == 2 and engine.lengths == [7, 2], "as it was"


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["prefill", "fork", "save", "restore", "crop", "release"]), st.integers(0, 3), st.integers(1, 9)
    ),
    max_size=9,
)


def share_prompts_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share prompts as a kernel needs it, although attention does not use it here; a step reads the whole cache."""
    monkeypatch.setattr("ollm_rl.decode.step.reads_live_part", lambda backbone: True)


def assert_what_is_shared_is_equal(engine: DecodeEngine) -> list[int]:
    """Check that every slot could read its beginning from its source; returns the shared length of every slot."""
    assert engine.cache is not None
    layout, found = engine.cache.layers[0].layout, []
    for slot, (source, shared) in enumerate(zip(layout.sources.tolist(), layout.shared.tolist(), strict=True)):
        for states in engine.cache.read(torch.tensor([slot, source]), shared):
            assert torch.equal(states[:, 0], states[:, 1])
        found.append(shared if source != slot else 0)
    return found


def test_slots_of_one_prompt_read_the_same_copy_while_any_of_them_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    share_prompts_on_the_cpu(monkeypatch)
    engine = DecodeEngine(tiny_model("llama"), 5, 24)
    group, other, late = random_ids(6, 6, 4)
    tokens = torch.arange(5)
    engine.prefill(range(5), [group, group, other, group, other])
    engine.step(tokens)
    assert assert_what_is_shared_is_equal(engine) == [0, 6, 0, 6, 6]
    engine.prefill([0], [late])
    engine.step(tokens)
    assert assert_what_is_shared_is_equal(engine) == [0, 0, 0, 6, 6]
    engine.fork(3, [0])
    engine.restore(engine.snapshot([2, 4]), [2, 4])
    engine.step(tokens)
    assert assert_what_is_shared_is_equal(engine) == [0, 6, 0, 6, 6]
    engine.crop(0, 5)  # the next token is written into the prompt
    engine.release(1)
    engine.step(tokens)
    assert assert_what_is_shared_is_equal(engine) == [0, 0, 0, 0, 6]
    engine.keep([4, 2])
    engine.step(tokens[:2])
    assert assert_what_is_shared_is_equal(engine) == [0, 6]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("family", GREEDY)
def test_after_any_sequence_of_operations_every_slot_agrees_with_one_pass(
    family: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shared:
        share_prompts_on_the_cpu(monkeypatch)
    backbone = tiny_model(family)
    known: dict[tuple[int, ...], torch.Tensor] = {}

    def expected(tokens: list[int]) -> torch.Tensor:
        if tuple(tokens) not in known:
            known[tuple(tokens)] = full_hidden_states(backbone, tokens)[-1]
        return known[tuple(tokens)]

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(actions=ACTIONS, seed=st.integers(0, 99))
    def check(actions: list[tuple[str, int, int]], seed: int) -> None:
        engine = DecodeEngine(backbone, 4, 48, pass_tokens=10)
        generator = torch.Generator().manual_seed(seed)
        held: list[list[int] | None] = [None] * 4
        saved: tuple[Any, list[int]] | None = None
        for kind, slot, number in [("prefill", 0, 5), *actions]:
            if kind == "prefill":
                held[slot] = torch.randint(1, VOCAB, (number,), generator=generator).tolist()
                engine.prefill([slot], [held[slot] or []])
            elif kind == "restore" and saved is not None:
                engine.restore(saved[0], [slot])
                held[slot] = list(saved[1])
            elif (tokens := held[slot]) is None:
                continue
            elif kind == "fork":
                engine.fork(slot, [number % 4])
                held[number % 4] = list(tokens)
            elif kind == "save":
                saved = engine.snapshot([slot]), list(tokens)
            elif kind == "crop":
                held[slot] = tokens[: min(number, len(tokens))]
                engine.crop(slot, min(number, len(tokens)))
            elif kind == "release":
                engine.release(slot)
                held[slot] = None
            taken = torch.randint(1, VOCAB, (4,), generator=generator)
            hidden = engine.step(taken)
            assert_what_is_shared_is_equal(engine)
            for row, sequence in enumerate(held):
                if sequence is not None:
                    sequence.append(int(taken[row]))
                    torch.testing.assert_close(hidden[row], expected(sequence), rtol=1e-4, atol=1e-4)

    check()


@pytest.mark.parametrize("family", GREEDY)
def test_greedy_refilled_and_forked_slots_give_the_tokens_of_generate(family: str) -> None:
    backbone = tiny_model(family)
    prompts, late = random_ids(3, 17, 9), random_ids(12, seed=5)[0]
    expected = [greedy_generate(backbone, prompt, 30) for prompt in prompts]
    refilled = greedy_generate(backbone, late, 20)
    engine = DecodeEngine(backbone, 3, 64)
    engine.prefill(range(3), prompts)
    assert greedy(engine, 11) == [row[:11] for row in expected]
    engine.step(torch.tensor([row[10] for row in expected]))
    engine.fork(1, [0])
    engine.prefill([2], [late])
    found = greedy(engine, 19)
    assert found == [expected[1][11:], expected[1][11:], refilled[:19]]
