"""The embedded backbone as it ships: small, and with room for reinforcement learning to improve."""

import numpy as np
import pytest
import torch

from ollm_rl.agents.evaluation.free_running import evaluate
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.answers.pool import verify
from ollm_rl.backbones.loading import load_backbone
from ollm_rl.pretrain.tiny_arith import build_model, build_tokenizer, training_examples
from ollm_rl.problems.arith import generate
from ollm_rl.problems.sources import load_problems
from tests.places import ROOT

ASSETS = ROOT / "ollm_rl" / "assets" / "tiny-arith"


def test_model_and_tokenizer_are_at_most_eight_megabytes_and_two_million_parameters() -> None:
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) <= 8_000_000
    model, _ = load_backbone("tiny-arith")
    assert 1_500_000 < sum(parameter.numel() for parameter in model.parameters()) < 2_500_000


def test_the_tokenizer_decodes_every_word_of_the_generator_unchanged() -> None:
    _, tokenizer = load_backbone("tiny-arith")
    for problem in generate(500, np.random.default_rng(5)):
        text = f"{problem.question}\n{problem.solution}"
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_recipe_builds_the_tokenizer_and_the_shape_that_ship() -> None:
    shipped_model, shipped = load_backbone("tiny-arith")
    tokenizer = build_tokenizer()
    assert tokenizer.get_vocab() == shipped.get_vocab()
    shapes = {name: weight.shape for name, weight in build_model(tokenizer).state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in shipped_model.state_dict().items()}


def test_the_recipe_shows_careful_solutions_first_and_the_stated_mix_later() -> None:
    tokenizer = build_tokenizer()
    examples = training_examples(tokenizer, 100)
    assert len(examples) == 100 * 16
    with_working = ["=" in tokenizer.decode(example["input_ids"]) for example in examples]
    assert all(with_working[:960])  # 60 of 100 steps
    assert 0.3 < sum(with_working[960:]) / 640 < 0.5  # all but the 60 % of short solutions


def test_greedy_decoding_solves_between_a_quarter_and_sixty_percent() -> None:
    policy, tokenizer = load_policy("tiny-arith")
    problems = load_problems("arith", split="test", limit=192, seed=3)
    result = evaluate(policy, tokenizer, problems, max_new_tokens=96, num_slots=192)
    assert 0.25 <= result["accuracy"] <= 0.60
    assert result["degeneracy_rate"] < 0.05


@pytest.mark.slow
def test_samples_find_answers_that_greedy_decoding_does_not() -> None:
    policy, tokenizer = load_policy("tiny-arith")
    problems = load_problems("arith", split="test", limit=96, seed=3)
    greedy = evaluate(policy, tokenizer, problems, max_new_tokens=96, num_slots=192)
    generator = torch.Generator().manual_seed(0)
    repeated = [problem for problem in problems for _ in range(8)]
    sampled = evaluate(policy, tokenizer, repeated, max_new_tokens=96, num_slots=384, generator=generator)
    rows = sampled["completions"]
    found = [any(row["correct"] for row in rows[start : start + 8]) for start in range(0, len(rows), 8)]
    assert sum(found) / len(found) >= greedy["accuracy"] + 0.30
    # Careful solutions show their working, an equation or more, and nearly always reach the right answer.
    careful = [row for row in rows if "=" in row["completion"] and not row["flags"]]
    assert len(careful) > 100
    assert sum(row["correct"] for row in careful) / len(careful) >= 0.85


def test_the_generators_own_solutions_get_the_reward_that_their_labels_say() -> None:
    finished = [problem for problem in generate(400, np.random.default_rng(11)) if problem.style != "loop"]
    for problem in finished:
        assert verify(problem.solution, str(problem.answer)).correct == (not problem.wrong)
    assert 50 < sum(problem.wrong for problem in finished) < 200
