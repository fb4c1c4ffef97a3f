"""Samples in evaluation: pass@k, avg@k and maj@k, temperature and nucleus, and policies of one's own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ollm_rl.agents.completions import Completion
from ollm_rl.agents.evaluation.free_running import evaluate, measured
from ollm_rl.agents.policies.base import Choices
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.agents.training.trainer import train
from ollm_rl.answers.pool import Verdict
from ollm_rl.backbones.output_head import OutputHead
from ollm_rl.cli import main
from ollm_rl.decode.turns import Action
from ollm_rl.errors import UsageError
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.sources import load_problems
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.training_runs import DIGITS, config, naming

PROBLEMS = [
    Problem(id=str(n), question=f"Give {n}?", solution="", answer=answer, language="en")
    for n, answer in enumerate(("1", "2", "3"))
]


def answered(problem: Problem, *answers: str | None) -> list[Completion]:
    return [
        Completion(
            problem=problem,
            text=f"It is {answer}.",
            tokens=3,
            terminated=True,
            verdict=Verdict(answer == problem.answer, answer, None, "ok"),
        )
        for answer in answers
    ]


def test_the_numbers_of_several_samples_are_those_worked_by_hand() -> None:
    rows = [
        *answered(PROBLEMS[0], "1", "7", "1.0", None),  # two of the votes for 1, one of them spelled otherwise
        *answered(PROBLEMS[1], "7", "7", "2", "2"),  # a tie: the earlier answer wins
        *answered(PROBLEMS[2], None, None, None, None),
    ]
    result = measured(rows, samples=4)
    assert result["num_problems"] == 3 and len(result["completions"]) == 12
    assert result["accuracy"] == result["avg_at_4"] == result["pass_at_1"] == pytest.approx(3 / 12)
    # Of six pairs: three hold the one right sample of the first problem, five one of the two of the second.
    assert result["pass_at_2"] == pytest.approx((3 / 6 + 5 / 6 + 0) / 3)
    assert result["pass_at_4"] == pytest.approx(2 / 3)
    assert result["maj_at_4"] == pytest.approx(1 / 3)
    assert 0 <= result["low"] <= result["accuracy"] <= result["high"] <= 2 / 3


def test_evaluation_of_samples_resumes_and_is_listed(
    tmp_path: Path, model_folder: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(DIGITS))
    run = train(config(tmp_path / "run", model_folder, data, iterations=1, temperature=1.5))
    words = ["eval", "--model", str(run), "--data", data, "--out", str(tmp_path / "eval"), "--max_new_tokens", "3"]
    words += ["--device", "cpu", "--num_slots", "4", "--sample", "true", "--samples", "4", "--limit", "3"]
    assert main([*words, "--temperature", "0.6", "--top_p", "0.9"]) == 0
    table = (tmp_path / "eval" / "results.md").read_text()
    assert "| avg@4, % | maj@4, % | pass@1, % | pass@2, % | pass@4, % |" in table
    assert main([*words, "--temperature", "0.7", "--top_p", "0.9"]) == 2


def test_a_small_nucleus_or_a_low_temperature_is_greedy(model_folder: Path, data: str) -> None:
    policy, tokenizer = load_policy(str(model_folder))
    problems = load_problems(data)[:2]
    greedy = [row["completion"] for row in evaluate(policy, tokenizer, problems, max_new_tokens=4)["completions"]]
    settings: list[dict[str, Any]] = [{"top_p": 1e-6}, {"temperature": 0.002}]
    for changes in settings:
        generator = torch.Generator().manual_seed(0)
        result = evaluate(policy, tokenizer, problems, max_new_tokens=4, generator=generator, samples=2, **changes)
        assert [row["completion"] for row in result["completions"]] == [greedy[0]] * 2 + [greedy[1]] * 2


class Greedy:
    """A policy of one's own, as the documentation has it."""

    def __init__(self, backbone: Any) -> None:
        self.backbone, self.head = backbone, OutputHead(backbone)

    def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        return Action.of(self.head(hidden_states).argmax(-1))


def test_a_policy_of_ones_own_needs_only_a_backbone_and_act() -> None:
    backbone, tokenizer = tiny_model("llama"), tiny_tokenizer()

    def long(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float(len(completion)) for completion in completions]

    result = evaluate(Greedy(backbone), tokenizer, PROBLEMS, max_new_tokens=5, reward=long)
    expected = [
        tokenizer.decode(
            backbone.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=5)[0, len(ids) :],
            skip_special_tokens=True,
        )
        for ids in (tokenizer(row["question"] + "\n").input_ids for row in result["completions"])
    ]
    assert [row["completion"] for row in result["completions"]] == expected
    assert result["reward_long"] == sum(map(len, expected)) / 3
    with pytest.raises(UsageError, match="need the choices of the policy, and Greedy lists none"):
        evaluate(Greedy(backbone), tokenizer, PROBLEMS, generator=torch.Generator(), temperature=0.5, max_new_tokens=5)


class Listing(Greedy):
    """One that also lists what it chooses among, and has no value head."""

    def choices(self, hidden_states: torch.Tensor) -> Choices:
        log_probs = self.head(hidden_states).float().log_softmax(-1)
        return Choices(torch.arange(log_probs.shape[1]).expand_as(log_probs), log_probs)


def test_a_policy_of_ones_own_with_choices_is_sampled_at_a_temperature() -> None:
    policy, generator = Listing(tiny_model("llama")), torch.Generator().manual_seed(0)
    greedy = evaluate(policy, tiny_tokenizer(), PROBLEMS, max_new_tokens=5)
    sampled: dict[str, Any] = {"generator": generator, "max_new_tokens": 5}
    cold = evaluate(policy, tiny_tokenizer(), PROBLEMS, temperature=0.0011, **sampled)
    assert [row["completion"] for row in cold["completions"]] == [row["completion"] for row in greedy["completions"]]
    hot = evaluate(policy, tiny_tokenizer(), PROBLEMS, temperature=50.0, **sampled)
    assert [row["completion"] for row in hot["completions"]] != [row["completion"] for row in greedy["completions"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 2}, "temperature, top_p and samples are not used in greedy decoding; give a generator"),
        ({"generator": torch.Generator(), "temperature": 0.0}, "temperature=0.0 must be more than 0.001"),
        ({"generator": torch.Generator(), "top_p": 0.0}, "top_p=0.0 must be more than 0"),
        ({"generator": torch.Generator(), "samples": 0}, "samples=0 must be at least 1"),
    ],
)
def test_sampling_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(Greedy(tiny_model("llama")), tiny_tokenizer(), PROBLEMS, max_new_tokens=5, **changes)
