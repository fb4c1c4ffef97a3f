"""Several ends of text, and ids that no token has, against Hugging Face's ``generate``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ollm_rl.agents.completions import Checks
from ollm_rl.agents.policies.anchored import TopTokensPolicy
from ollm_rl.agents.policies.frozen_head import FrozenHeadPolicy
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.agents.search.choosing import Unverified, verify_completions
from ollm_rl.answers.pool import shared_pool
from ollm_rl.backbones.loading import load_backbone
from ollm_rl.backbones.vocabulary import end_tokens
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import Rollout, collect
from ollm_rl.decode.turns import Turns
from ollm_rl.envs.text_gen import TextGenEnv
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.problem import Problem
from tests.decode.test_engine import random_ids
from tests.tiny_models import EOS, VOCAB, randomized, tiny_config, tiny_model, tiny_tokenizer

PROMPTS, LIMIT, PADDED = random_ids(3, 14, 8), 16, VOCAB + 7
PROBLEM = Problem(id="sum", question="3 + 4", solution="", answer="7", language="en")


def generated(backbone: PreTrainedModel, **settings: object) -> list[list[int]]:
    """What ``generate`` appends greedily to each prompt."""
    rows = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        output = backbone.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LIMIT, pad_token_id=0, **settings
        )
        rows.append(output[0, len(prompt) :].tolist())
    return rows


def rollout(policy: TokenPolicy, tokenizer: PreTrainedTokenizerBase, *, sample: bool = False) -> Rollout:
    turns = Turns(DecodeEngine(policy.backbone, 2, 32), policy.act)
    generator = torch.Generator().manual_seed(0) if sample else None
    ends = end_tokens(policy.backbone, tokenizer)
    return collect(turns, PROMPTS, max_new_tokens=LIMIT, end_tokens=ends, generator=generator)


def completions(found: Rollout) -> list[list[int]]:
    pairs = zip(found.tokens.tolist(), found.completion_mask.sum(1).tolist(), strict=True)
    return [row[:length] for row, length in pairs]


def chat_model() -> tuple[PreTrainedModel, list[int]]:
    """A model with two ends of text of its own, which it writes first in two of the completions."""
    backbone = tiny_model("llama")
    free = generated(backbone)
    ends = [free[0][5], free[1][9]]
    backbone.generation_config.eos_token_id = ends
    return backbone, ends


@pytest.fixture
def padded(tmp_path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A loaded model with seven rows more than its tokenizer has tokens."""
    config = tiny_config("llama")
    config.vocab_size = PADDED
    randomized(AutoModelForCausalLM.from_config(config).eval()).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return load_backbone(str(tmp_path))


def test_every_end_of_the_generation_config_and_the_tokenizers_is_an_end_if_the_model_knows_it() -> None:
    backbone, tokenizer = tiny_model("llama"), tiny_tokenizer()
    assert end_tokens(backbone, tokenizer) == (EOS,)
    backbone.generation_config.eos_token_id = 9
    assert end_tokens(backbone, tokenizer) == (EOS, 9)
    backbone.generation_config.eos_token_id = [9, 4, EOS, VOCAB]
    assert end_tokens(backbone, tokenizer) == (EOS, 4, 9)


def test_completions_end_where_generate_ends_them() -> None:
    backbone, ends = chat_model()
    expected = generated(backbone)
    assert [row[-1] in ends for row in expected[:2]] == [True, True] and {len(row) for row in expected} != {LIMIT}
    found = rollout(TokenPolicy(backbone, rank=0), tiny_tokenizer())
    assert completions(found) == expected
    assert found.terminated.tolist() == [row[-1] in ends for row in expected]


def test_checks_and_searches_call_a_completion_with_any_end_terminated() -> None:
    backbone, (first, second) = chat_model()
    tokenizer = tiny_tokenizer()
    ends = end_tokens(backbone, tokenizer)
    written = [[7, first], [7, second], [7, EOS], [7, 8]]
    checks = Checks([PROBLEM] * 4, tokenizer, ends, shared_pool())
    checks.begin([0, 1, 2, 3], written)
    assert [one.terminated for one in checks.finish()] == [True, True, True, False]
    found = verify_completions(PROBLEM, [Unverified(row, 0.0, 0.0, 2) for row in written], tokenizer, ends)
    assert [one.terminated for one in found] == [True, True, True, False]


def test_every_end_terminates_an_episode_of_an_environment() -> None:
    backbone, ends = chat_model()
    model = OptionModel(backbone, OptionConfig(num_options=2, width=16))
    env = TextGenEnv(model, [PROBLEM], action_space="tokens", max_new_tokens=8, tokenizer=tiny_tokenizer())
    for end in (*ends, EOS):
        env.reset()
        other = next(token for token in range(1, VOCAB) if token not in ends)
        assert env.step(np.int64(other))[2] is False
        assert env.step(np.int64(end))[2] is True


def test_ids_beyond_the_tokenizer_are_never_written(padded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    backbone, tokenizer = padded
    free = generated(backbone, suppress_tokens=None)
    assert max(map(max, free)) >= VOCAB, "else nothing could be suppressed"
    assert completions(rollout(TokenPolicy(backbone, rank=0), tokenizer)) == generated(backbone)
    hidden = torch.randn(500, 32)
    options = OptionModel(backbone, OptionConfig(num_options=4, width=8))
    assert int(options.option_tokens(hidden).max()) < VOCAB
    uniforms = torch.rand(500, generator=torch.Generator().manual_seed(1))
    for policy in (TokenPolicy(backbone, rank=2), FrozenHeadPolicy(backbone), TopTokensPolicy(backbone, 10)):
        assert int(policy.act(hidden, uniforms).tokens.max()) < VOCAB
        assert int(policy.act(hidden, None).tokens.max()) < VOCAB


def test_a_padded_vocabulary_leaves_entropies_and_gradients_finite(
    padded: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    backbone, tokenizer = padded
    policy = TokenPolicy(backbone, rank=2)
    evaluation = policy.evaluate(rollout(policy, tokenizer, sample=True), reference=True)
    (evaluation.log_probs.sum() + evaluation.entropies.sum()).backward()
    assert evaluation.entropies.isfinite().all() and (evaluation.entropies > 0).all()
    gradients = [weight.grad for weight in policy.parameters() if weight.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
