"""The option explorer against passes over whole sequences, one at a time, without a cache."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.evaluation import explorer
from ollm_rl.agents.evaluation.explorer import explore, option_maps
from ollm_rl.agents.policies.anchored import AnchoredPolicy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.decode.acceptance import check_decoding
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.problem import Problem
from tests.tiny_models import EOS, full_hidden_states, tiny_model, tiny_tokenizer

OPTIONS, LIMIT = 5, 12


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


@pytest.fixture
def policy() -> OptionPolicy:
    torch.manual_seed(3)
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=OPTIONS, width=16))
    with torch.no_grad():
        model.adapter.decoder_out.weight.mul_(8.0)  # so that untrained options differ
    return OptionPolicy(model)


def problem(question: str = "2+2?", answer: str = "") -> Problem:
    return Problem(id=question, question=question, solution="", answer=answer, language="en")


def votes(policy: OptionPolicy, ids: list[int]) -> dict[int, float]:
    """Probability of every token that an option leads to after some tokens."""
    hidden = full_hidden_states(policy.backbone, ids)[-1]
    found: dict[int, float] = {}
    for token, share in zip(
        policy.model.decode_options(hidden).argmax(-1).tolist(), policy.policy(hidden).softmax(-1).tolist(), strict=True
    ):
        found[token] = found.get(token, 0.0) + share
    return found


def greedy(policy: OptionPolicy, ids: list[int], count: int) -> list[int]:
    """At most ``count`` tokens, each the one with the most votes."""
    written: list[int] = []
    while len(written) < count and EOS not in written:
        found = votes(policy, ids + written)
        written.append(max(found, key=lambda token: found[token]))
    return written


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text).input_ids
    return ids


def test_positions_choices_and_continuations_agree_with_whole_passes(
    policy: OptionPolicy, tokenizer: PreTrainedTokenizerBase
) -> None:
    (item,) = explore(policy, tokenizer, [problem()], max_new_tokens=LIMIT)
    prompt = ids_of(tokenizer, "2+2?\n")
    completion = greedy(policy, prompt, LIMIT)
    assert [position["text"] for position in item["positions"]] == [tokenizer.decode([i]) for i in completion]
    live = 0
    for place, position in enumerate(item["positions"]):
        found = votes(policy, prompt + completion[:place])
        choices = {choice["text"]: choice for choice in position["choices"]}
        assert {text: c["policy"] for text, c in choices.items()} == pytest.approx(
            {tokenizer.decode([token]): share for token, share in found.items()}, abs=2e-4
        )
        assert sorted(z for c in position["choices"] for z, _, _ in c["options"]) == list(range(OPTIONS))
        assert sum(encoder for c in position["choices"] for _, _, encoder in c["options"]) == pytest.approx(1, abs=1e-3)
        entropy = -sum(share * torch.tensor(share).log().item() for share in found.values())
        assert position["entropy"] == pytest.approx(entropy, abs=2e-4)
        for token in found:
            described = choices[tokenizer.decode([token])]
            assert described["written"] == (token == completion[place])
            if token == completion[place]:
                assert "then" not in described
                continue
            live += 1
            then = greedy(policy, prompt + completion[:place] + [token], LIMIT - place - 1) if token != EOS else []
            assert described["then"] == tokenizer.decode(then)
            assert described["ended"] == (EOS in [token, *then])
    assert live > 3


def test_the_encoder_sees_the_token_that_was_written(policy: OptionPolicy, tokenizer: PreTrainedTokenizerBase) -> None:
    (item,) = explore(policy, tokenizer, [problem()], max_new_tokens=1)
    (position,) = item["positions"]
    hidden = full_hidden_states(policy.backbone, ids_of(tokenizer, "2+2?\n"))[-1]
    (written,) = ids_of(tokenizer, position["text"])
    embedded = policy.backbone.get_input_embeddings().weight[written]
    wanted = policy.model.adapter.encode(hidden, embedded).softmax(-1).tolist()
    found = {z: encoder for choice in position["choices"] for z, _, encoder in choice["options"]}
    assert [found[z] for z in range(OPTIONS)] == pytest.approx(wanted, abs=1e-4)


def test_no_prefix_is_read_twice(policy: OptionPolicy, tokenizer: PreTrainedTokenizerBase) -> None:
    widths: list[int] = []

    def count(module: Any, arguments: Any, settings: Any) -> None:
        widths.append(settings["input_ids"].shape[1])

    check_decoding(policy.backbone)  # else the first engine would read the rows that it compares
    policy.backbone.base_model.register_forward_pre_hook(count, with_kwargs=True)
    (item,) = explore(policy, tokenizer, [problem()], max_new_tokens=LIMIT)
    assert sum("then" in choice for position in item["positions"] for choice in position["choices"]) > 3
    assert [width for width in widths if width > 1] == [len("2+2?\n")]


def test_alternatives_are_bounded_in_number(
    policy: OptionPolicy, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = explore(policy, tokenizer, [problem()], max_new_tokens=LIMIT)
    monkeypatch.setattr(explorer, "NUM_SLOTS", 2)  # waves of two change nothing
    assert explore(policy, tokenizer, [problem()], max_new_tokens=LIMIT) == whole
    monkeypatch.setattr(explorer, "MAX_LIVE", 2)
    (item,) = explore(policy, tokenizer, [problem()], max_new_tokens=LIMIT)
    live = [p for p in item["positions"] if len(p["choices"]) > 1]
    assert len(live) > 2
    assert [any("then" in choice for choice in p["choices"]) for p in live] == [True, True] + [False] * (len(live) - 2)


def test_answers_are_checked_where_one_is_known(policy: OptionPolicy, tokenizer: PreTrainedTokenizerBase) -> None:
    (unknown,) = explore(policy, tokenizer, [problem()], max_new_tokens=LIMIT)
    assert unknown["correct"] is None
    (known,) = explore(policy, tokenizer, [problem(answer="4")], max_new_tokens=LIMIT)
    assert known["correct"] is False


def test_maps_show_usage_where_options_differ_and_entropy_everywhere(
    policy: OptionPolicy, tokenizer: PreTrainedTokenizerBase
) -> None:
    maps = option_maps(policy, tokenizer, [problem(), problem("7?")], max_new_tokens=LIMIT)
    rows = [ids_of(tokenizer, "2+2?\n"), ids_of(tokenizer, "7?\n")]
    first = [full_hidden_states(policy.backbone, ids)[-1] for ids in rows]
    assert all(len(votes(policy, ids)) > 1 for ids in rows)
    wanted = sum(policy.policy(hidden).softmax(-1) for hidden in first) / 2
    assert [shares[0] for shares in maps["usage"]] == pytest.approx(wanted.tolist(), abs=1e-4)
    explored = explore(policy, tokenizer, [problem(), problem("7?")], max_new_tokens=LIMIT)
    for row, item in zip(maps["entropy"], explored, strict=True):
        assert row == pytest.approx([position["entropy"] for position in item["positions"]], abs=2e-4)


def test_a_prompt_that_does_not_fit_is_refused(policy: OptionPolicy, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="leaves no room"):
        explore(policy, tokenizer, [problem("1+" * 40)], max_new_tokens=LIMIT)


def test_an_anchored_policy_is_explored_by_its_own_probabilities(
    policy: OptionPolicy, tokenizer: PreTrainedTokenizerBase
) -> None:
    anchored = AnchoredPolicy(policy.model)
    (item,) = explore(anchored, tokenizer, [problem()], max_new_tokens=1)
    (position,) = item["positions"]
    hidden = full_hidden_states(policy.backbone, ids_of(tokenizer, "2+2?\n"))[-1:]
    offered = sorted(set(policy.model.option_tokens(hidden)[0].tolist()))
    probs = policy.backbone.get_output_embeddings()(hidden)[0, offered].softmax(-1)
    expected = dict(zip(map(tokenizer.decode, offered), probs.tolist(), strict=True))
    assert {choice["text"]: choice["policy"] for choice in position["choices"]} == pytest.approx(expected, abs=2e-4)
    assert position["entropy"] == pytest.approx(float(torch.special.entr(probs).sum()), abs=2e-4)
