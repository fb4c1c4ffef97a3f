"""The decode engine against Hugging Face's ``generate`` and cache-free passes, and a slot against its neighbours."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    PreTrainedModel,
)

from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.tiny_models import (
    CONTEXT,
    FAMILIES,
    HIDDEN,
    VOCAB,
    WINDOW,
    full_hidden_states,
    greedy_generate,
    tiny_config,
    tiny_model,
)

# Every family with its own attention (Gemma2's is eager), and two with eager instead of SDPA.
MODELS = [(family, None) for family in FAMILIES] + [("llama", "eager"), ("mistral", "eager")]


@pytest.fixture(params=MODELS, ids=lambda param: "-".join(filter(None, param)))
def backbone(request: pytest.FixtureRequest) -> PreTrainedModel:
    family, attention = request.param
    return tiny_model(family, attention=attention)


def random_ids(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def feed(engine: DecodeEngine, slots: Sequence[int], sequences: Sequence[Sequence[int]], start: int) -> torch.Tensor:
    """Step through token ``start`` and later of equally long sequences; hidden states (steps, slots, H)."""
    steps = []
    for position in range(start, len(sequences[0])):
        tokens = torch.zeros(len(engine.lengths), dtype=torch.long)
        for slot, sequence in zip(slots, sequences, strict=True):
            tokens[slot] = sequence[position]
        steps.append(engine.step(tokens)[list(slots)])
    return torch.stack(steps)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    # Matrix products depend on the number of rows, more or less so by device and library.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_ragged_prompts_decoded_together_give_the_tokens_of_generate(backbone: PreTrainedModel) -> None:
    # Up to 23 + 30 tokens: past the sliding window of 8 and past a bucket of 32.
    prompts, count = random_ids(3, 23, 1, 10), 30
    expected = [greedy_generate(backbone, prompt, count) for prompt in prompts]
    assert all(len(set(tokens)) > 5 for tokens in expected), "a model that repeats itself would test nothing"

    model = OptionModel(backbone, OptionConfig(num_options=2, width=8))
    engine = DecodeEngine(backbone, len(prompts), 23 + count)
    tokens = model.lm_logits(engine.prefill(range(4), prompts)).argmax(-1)
    found = [tokens]
    for _ in range(count - 1):
        tokens = model.lm_logits(engine.step(tokens)).argmax(-1)
        found.append(tokens)
    assert torch.stack(found, 1).tolist() == expected


@pytest.mark.parametrize("family", ["gemma2", "mistral"])
def test_the_sliding_window_changes_the_hidden_states_of_these_models(family: str) -> None:
    (ids,) = random_ids(WINDOW + 12)
    windowed, full = tiny_model(family), tiny_model(family)
    for module in (full, *full.modules()):
        if hasattr(module, "sliding_window"):
            module.sliding_window = None
    full.config.sliding_window = CONTEXT
    difference = (full_hidden_states(windowed, ids) - full_hidden_states(full, ids)).abs().amax(-1)
    assert difference[:WINDOW].max() < 1e-5
    assert difference[-1] > 0.1


def test_hidden_states_equal_those_of_one_pass_without_a_cache(backbone: PreTrainedModel) -> None:
    sequences = random_ids(40, 40, 40)
    lengths = [2, 15, 9]
    expected = [full_hidden_states(backbone, sequence) for sequence in sequences]
    engine = DecodeEngine(backbone, 3, 40)
    first = engine.prefill([0, 1, 2], [ids[:length] for ids, length in zip(sequences, lengths, strict=True)])
    for row, length in enumerate(lengths):
        torch.testing.assert_close(first[row], expected[row][length - 1], rtol=1e-4, atol=1e-4)
    for step in range(20):
        hidden = engine.step(torch.tensor([ids[n + step] for ids, n in zip(sequences, lengths, strict=True)]))
        for row, length in enumerate(lengths):
            torch.testing.assert_close(hidden[row], expected[row][length + step], rtol=1e-4, atol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours(backbone: PreTrainedModel) -> None:
    prompts, continuations = random_ids(3, 20, 8), random_ids(25, 25, 25, seed=1)
    together = DecodeEngine(backbone, 3, 48)
    first = together.prefill([0, 1, 2], prompts)
    rest = feed(together, [0, 1, 2], continuations, 0)
    for row in range(3):
        alone = DecodeEngine(backbone, 1, 48)
        assert_same(first[row], alone.prefill([0], [prompts[row]])[0])
        assert_same(rest[:, row], feed(alone, [0], [continuations[row]], 0)[:, 0])


def test_compiled_steps_and_passes_over_prompts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # The traced graph runs uncompiled, so no compiler is needed. A graph break is an error.
    traced = partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    backbone = tiny_model("llama").to("cuda" if torch.cuda.is_available() else "cpu")
    prompts, continuations = random_ids(3, 14, 8), random_ids(6, 6, 6, seed=1)
    plain, compiled = DecodeEngine(backbone, 3, 48), DecodeEngine(backbone, 3, 48, compiled=True)
    assert_same(compiled.prefill([0, 1, 2], prompts), plain.prefill([0, 1, 2], prompts))
    others = random_ids(9, 5, seed=2)
    assert_same(compiled.prefill([2, 0], others), plain.prefill([2, 0], others))
    assert_same(feed(compiled, [0, 1, 2], continuations, 0), feed(plain, [0, 1, 2], continuations, 0))
    for engine in (plain, compiled):
        engine.keep([0, 2])
    assert_same(feed(compiled, [0, 1], continuations[:2], 0), feed(plain, [0, 1], continuations[:2], 0))
    # One graph for steps of any number of slots, and one for passes over any number of prompts of any length.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("length", [4, 25])
def test_a_refilled_slot_equals_a_new_one_and_leaves_the_others_unchanged(
    backbone: PreTrainedModel, length: int
) -> None:
    prompts, continuations = random_ids(3, 14, 8), random_ids(20, 20, 20, seed=1)
    (refill,) = random_ids(length, seed=2)
    engine, undisturbed, fresh = (DecodeEngine(backbone, slots, 48) for slots in (3, 3, 1))
    for each in (engine, undisturbed):
        each.prefill([0, 1, 2], prompts)
    early = [ids[:6] for ids in continuations]
    assert_same(feed(engine, [0, 1, 2], early, 0), feed(undisturbed, [0, 1, 2], early, 0))

    engine.release(1)
    (hidden,) = engine.prefill([1], [refill])
    assert_same(hidden, fresh.prefill([0], [refill])[0])

    late = [ids[6:] for ids in continuations]
    found, expected = feed(engine, [0, 1, 2], late, 0), feed(undisturbed, [0, 1, 2], late, 0)
    assert_same(found[:, [0, 2]], expected[:, [0, 2]])
    assert_same(found[:, 1], feed(fresh, [0], [late[1]], 0)[:, 0])


def test_a_released_slot_does_not_disturb_the_others(backbone: PreTrainedModel) -> None:
    prompts, continuations = random_ids(3, 14), random_ids(10, 10, seed=1)
    engine, alone = DecodeEngine(backbone, 2, 32), DecodeEngine(backbone, 1, 32)
    engine.prefill([0, 1], prompts)
    engine.release(1)
    alone.prefill([0], prompts[:1])
    assert_same(feed(engine, [0], continuations[:1], 0), feed(alone, [0], continuations[:1], 0))


def test_keep_reorders_and_shrinks_without_changing_results(backbone: PreTrainedModel) -> None:
    prompts, continuations = random_ids(3, 14, 8, 5), random_ids(20, 20, 20, 20, seed=1)
    engine, undisturbed = DecodeEngine(backbone, 4, 40), DecodeEngine(backbone, 4, 40)
    for each in (engine, undisturbed):
        each.prefill(range(4), prompts)
        feed(each, range(4), [ids[:5] for ids in continuations], 0)
    expected = feed(undisturbed, range(4), [ids[5:] for ids in continuations], 0)

    order = [3, 1]
    engine.keep(order)
    found = feed(engine, [0, 1], [continuations[slot][5:] for slot in order], 0)
    assert found.shape == (15, 2, HIDDEN)
    assert_same(found, expected[:, order])


def test_a_restart_forgets_the_slots_and_may_use_fewer(backbone: PreTrainedModel) -> None:
    old, new, continuations = random_ids(3, 14, 30), random_ids(5, 9, seed=1), random_ids(20, 20, seed=2)
    engine, fresh = DecodeEngine(backbone, 3, 40), DecodeEngine(backbone, 2, 40)
    engine.prefill([0, 1, 2], old)
    engine.keep([2])
    engine.restart(2)
    assert_same(engine.prefill([0, 1], new), fresh.prefill([0, 1], new))
    assert_same(feed(engine, [0, 1], continuations, 0), feed(fresh, [0, 1], continuations, 0))
    engine.restart(3)
    assert engine.lengths == [0, 0, 0]
    with pytest.raises(ValueError, match="num_slots=4 is not within 1 to 3"):
        engine.restart(4)


def test_on_a_cpu_every_slot_that_is_not_needed_is_dropped() -> None:
    engine = DecodeEngine(tiny_model("llama"), 20, 8)
    assert [engine.slots_for(needed) for needed in (20, 18, 1, 21)] == [20, 18, 1, 20]


def test_equal_prompts_are_computed_once_and_give_equal_rows(backbone: PreTrainedModel) -> None:
    short, long = random_ids(4, 11)
    engine = DecodeEngine(backbone, 5, 32)
    seen = []
    hook = backbone.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    hidden = engine.prefill([4, 0, 1, 3, 2], [short, long, short, long, short])
    hook.remove()
    assert seen == [(2, 11)]
    assert torch.equal(hidden[0], hidden[2]) and torch.equal(hidden[0], hidden[4]) and torch.equal(hidden[1], hidden[3])
    torch.testing.assert_close(hidden[0], full_hidden_states(backbone, short)[-1], rtol=1e-4, atol=1e-4)
    assert engine.lengths == [11, 4, 4, 11, 4]

    # Each slot has its own keys and values: different tokens after equal prompts give different rows.
    (tokens,) = random_ids(5, seed=1)
    after = engine.step(torch.tensor(tokens))
    for slot, prompt in enumerate([long, short, short, long, short]):
        expected = full_hidden_states(backbone, [*prompt, tokens[slot]])[-1]
        torch.testing.assert_close(after[slot], expected, rtol=1e-4, atol=1e-4)


def test_a_slot_holds_max_length_tokens_and_refuses_one_more() -> None:
    backbone = tiny_model("llama")
    engine = DecodeEngine(backbone, 2, 6)
    engine.prefill([0, 1], random_ids(4, 2))
    for _ in range(2):
        engine.step(torch.tensor([5, 5]))
    with pytest.raises(ValueError, match="slot 0 is full at 6 tokens"):
        engine.step(torch.tensor([5, 5]))
    engine.release(0)
    engine.step(torch.tensor([5, 5]))
    assert engine.lengths == [0, 5]


@pytest.mark.parametrize("length", [0, 8, 9])
def test_a_prompt_that_is_empty_or_leaves_no_room_is_refused(length: int) -> None:
    engine = DecodeEngine(tiny_model("llama"), 2, 8)
    with pytest.raises(ValueError, match=f"a prompt of {length} tokens does not fit a slot of 8"):
        engine.prefill([0, 1], [[5, 6], [7] * length])
    assert engine.lengths == [0, 0]


def test_a_step_needs_a_prefill_and_one_token_a_slot() -> None:
    engine = DecodeEngine(tiny_model("llama"), 2, 8)
    with pytest.raises(ValueError, match="prefill first"):
        engine.step(torch.tensor([1, 2]))
    engine.prefill([0, 1], random_ids(2, 3))
    with pytest.raises(ValueError, match="step got 3 tokens for 2 slots"):
        engine.step(torch.tensor([1, 2, 3]))
    engine.keep([0])
    with pytest.raises(ValueError, match="step got 2 tokens for 1 slots"):
        engine.step(torch.tensor([1, 2]))


def test_an_engine_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="num_slots=0"):
        DecodeEngine(tiny_model("llama"), 0, 8)


def test_passes_over_prompts_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="pass_tokens=0"):
        DecodeEngine(tiny_model("llama"), 1, 8, pass_tokens=0)


def test_a_max_length_above_the_context_is_refused() -> None:
    DecodeEngine(tiny_model("gpt2"), 1, CONTEXT)
    with pytest.raises(ValueError, match=f"max_length={CONTEXT + 1} is more than the backbone's context of {CONTEXT}"):
        DecodeEngine(tiny_model("gpt2"), 1, CONTEXT + 1)


def test_an_attention_implementation_that_accepts_no_prepared_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="attention implementation 'flex_attention'"):
        DecodeEngine(tiny_model("llama", attention="flex_attention"), 1, 8)


def test_a_model_with_layers_that_cache_no_keys_is_refused() -> None:
    shape = {name: getattr(tiny_config("llama"), name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    config = Lfm2Config(**shape, num_attention_heads=4, num_key_value_heads=2, full_attn_idxs=[1])
    with pytest.raises(ValueError, match="Lfm2ForCausalLM has layers of type 'conv'"):
        DecodeEngine(Lfm2ForCausalLM(config), 1, 8)


def test_a_model_whose_local_layers_mask_by_the_length_of_the_cache_is_refused() -> None:
    config = GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
    )
    with pytest.raises(ValueError, match="GPTNeoForCausalLM has layers of type 'local'"):
        DecodeEngine(GPTNeoForCausalLM(config), 1, 8)


def test_a_model_that_states_no_context_length_is_refused() -> None:
    backbone = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=HIDDEN, n_layer=1, n_head=4))
    with pytest.raises(ValueError, match="BloomForCausalLM states no max_position_embeddings"):
        DecodeEngine(backbone, 1, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestGraphs:
    """Recorded steps give the same results as plain steps."""

    def test_recorded_steps_equal_those_of_a_cpu(self, backbone: PreTrainedModel) -> None:
        prompts, continuations = random_ids(3, 20, 8, 11), random_ids(25, 25, 25, 25, seed=1)
        plain = DecodeEngine(backbone, 4, 48)
        expected = plain.prefill(range(4), prompts), feed(plain, range(4), continuations, 0)
        backbone.cuda()
        engine = DecodeEngine(backbone, 4, 48)
        for _ in range(2):  # the second time with the existing graphs
            engine.restart(4)
            first = engine.prefill(range(4), prompts).cpu()
            rest = torch.stack(
                [engine.step(torch.tensor(row).cuda()).cpu() for row in zip(*continuations, strict=True)]
            )
            torch.testing.assert_close(first, expected[0], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(rest, expected[1], rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_an_engine_runs_with_few_different_numbers_of_slots() -> None:
    engine = DecodeEngine(tiny_model("llama").cuda(), 300, 8)
    assert [engine.slots_for(needed) for needed in (300, 257, 256, 200, 33, 5)] == [300, 300, 256, 224, 40, 32]
