"""The trainer: it learns, equal seeds give equal runs, and unsuitable settings are refused."""

import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import ollm_rl.agents.workers.local as worker_module
from ollm_rl.agents.completions import read_completions
from ollm_rl.agents.config import RewardConfig, RLConfig
from ollm_rl.agents.policies.anchored import AnchoredPolicy
from ollm_rl.agents.policies.loading import load_policy, load_weights, trained_weights
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.agents.training.trainer import build_trainer, train
from ollm_rl.answers.pool import VerifierPool
from ollm_rl.decode.rollout import Rollout, collect
from ollm_rl.decode.turns import Turns
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from ollm_rl.problems.problem import Problem
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.training_runs import DIGITS, assert_equal_runs, checkpoint, config, history, ids_of, naming, weights


def bandit(question: str, answer: str) -> Problem:
    return Problem(id=question, question=question, solution="", answer=answer, language="en")


def bandit_config(out: Path, **changes: Any) -> RLConfig:
    settings: dict[str, Any] = {
        "out": out,
        "model": "unused",
        "episodes": 64,
        "iterations": 30,
        "max_new_tokens": 1,
        "learning_rate": 1e-2,
    }
    return RLConfig(**settings | changes)


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_options_learn_which_token_each_prompt_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    torch.manual_seed(0)
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=4, width=16))
    monkeypatch.setattr(OptionModel, "option_tokens", naming(DIGITS))
    problems = [bandit(letter, digit) for letter, digit in zip("wxyz", DIGITS, strict=True)]
    trainer = build_trainer(
        bandit_config(tmp_path, algorithm=algorithm), OptionPolicy(model), tiny_tokenizer(), problems
    )
    trainer.run()
    rewards = [row["reward"] for row in trainer.history]
    assert rewards[0] < 0.5  # chance is 0.25
    assert rewards[-1] > 0.9


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_a_lora_learns_which_token_is_asked_for(tmp_path: Path, algorithm: str) -> None:
    backbone = tiny_model("llama")
    # The question after which chance names a digit most often, so that there is a reward to begin with.
    digits = ids_of("123456789")
    best, question, answer = 0.0, "", ""
    for letter in "abcdefghijklmnopqrstuvwxyz":
        with torch.no_grad():
            probs = backbone(torch.tensor([ids_of(f"{letter}?\n")])).logits[0, -1].softmax(-1)[digits]
        if best < probs.max() < 0.3:
            best, question, answer = float(probs.max()), f"{letter}?", str(1 + int(probs.argmax()))
    assert best > 0.03
    settings = bandit_config(tmp_path, algorithm=algorithm, action_space="tokens", lora_rank=4)
    trainer = build_trainer(settings, TokenPolicy(backbone, rank=4), tiny_tokenizer(), [bandit(question, answer)])
    trainer.run()
    rewards = [row["reward"] for row in trainer.history]
    assert rewards[0] < 0.5
    assert rewards[-1] > 0.9


def test_on_tiny_arith_options_learn_to_answer_right(tmp_path: Path) -> None:
    options = run_sft(
        SFTConfig(
            out=tmp_path / "options", max_steps=25, batch_size=16, learning_rate=3e-3, limit=400, device="cpu", seed=0
        )
    )
    out = train(
        RLConfig(
            out=tmp_path / "latent",
            model=str(options),
            iterations=2,
            episodes=64,
            max_new_tokens=64,
            learning_rate=3e-3,
            device="cpu",
        )
    )
    rewards = [row["reward"] for row in history(out)]
    assert rewards[-1] > rewards[0] + 0.1, rewards


@pytest.mark.parametrize(
    ("action_space", "algorithm"), [("options", "ppo"), ("options", "reinforce"), ("tokens", "ppo")]
)
def test_equal_seeds_give_equal_runs_and_other_seeds_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str, action_space: str, algorithm: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(DIGITS))
    settings = {"action_space": action_space, "algorithm": algorithm, "iterations": 2}
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        train(config(tmp_path / name, model_folder, data, **settings, seed=seed))
    assert_equal_runs(tmp_path / "one", tmp_path / "again")
    assert history(tmp_path / "one") != history(tmp_path / "other")


def test_runs_over_options_and_over_tokens_see_the_same_prompts_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(DIGITS))
    seen: list[list[int]] = []

    def recording(turns: Turns, prompts: list[list[int]], **settings: Any) -> Rollout:
        seen.extend(prompts)
        return collect(turns, prompts, **settings)

    monkeypatch.setattr(worker_module, "collect", recording)
    records = []
    for action_space, seed in (("options", 3), ("tokens", 3), ("options", 4)):
        train(config(tmp_path / f"{action_space}-{seed}", model_folder, data, action_space=action_space, seed=seed))
        records.append(seen[:])
        seen.clear()
    assert records[0] == records[1] != records[2]
    # 4 iterations of 4 groups of 4 over 7 problems. Groups are contiguous, and each epoch has every problem once.
    groups = [tuple(records[0][first]) for first in range(0, 64, 4)]
    assert records[0] == [list(prompt) for prompt in groups for _ in range(4)]
    assert len(set(groups[:7])) == len(set(groups[7:14])) == 7
    assert groups[:7] != groups[7:14]


@pytest.mark.parametrize("action_space", ["options", "tokens"])
def test_loading_a_finished_run_gives_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str, action_space: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(DIGITS))
    out = train(config(tmp_path / "run", model_folder, data, action_space=action_space, iterations=1))
    policy, _ = load_policy(str(out))
    assert isinstance(policy, AnchoredPolicy if action_space == "options" else TokenPolicy)
    loaded, saved = trained_weights(policy), weights(out)
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_metrics_are_those_of_the_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> None:
    # Options 0 and 1 name the right answer, 2 and 3 a wrong one; every text is one digit, cut at the token limit.
    monkeypatch.setattr(OptionModel, "option_tokens", naming("1122"))
    path = tmp_path / "one.jsonl"
    path.write_text('{"question": "Give a?", "answer": "1"}\n{"question": "Give b?", "answer": "3"}')
    seen: list[Rollout] = []

    def recording(turns: Turns, prompts: list[list[int]], **settings: Any) -> Rollout:
        seen.append(collect(turns, prompts, **settings))
        return seen[-1]

    monkeypatch.setattr(worker_module, "collect", recording)
    changes = {"episodes": 32, "group_size": 16, "max_new_tokens": 1, "iterations": 1}
    out = train(config(tmp_path / "run", model_folder, f"jsonl:{path}", **changes))
    (row,) = history(out)
    (rollout,) = seen
    asked = [tiny_tokenizer().decode(prompt) for prompt in rollout.prompts]
    right = sum(
        token == ids_of("1")[0] and "a?" in text for (token,), text in zip(rollout.tokens.tolist(), asked, strict=True)
    )
    assert 0 < right < 16
    assert row["reward"] == right / 32
    assert (row["episodes"], row["completion_tokens"], row["live_share"]) == (32, 1, 1)
    assert (row["mixed_groups"], row["pass_at_group"]) == (0.5, 0.5)
    assert row["degeneracy_rate"] == 1  # none ends by itself
    assert (row["reward_correctness"], row["verifier_failures"]) == (row["reward"], 0)
    assert "reward_format" not in row
    texts = [(line["question"], line["completion"], line["correct"], line["reward"]) for line in read_completions(out)]
    assert len(texts) == 32
    assert set(texts) == {
        ("Give a?", "1", True, 1.0), ("Give a?", "2", False, 0.0), ("Give b?", "1", False, 0.0),
        ("Give b?", "2", False, 0.0),
    }  # fmt: skip


def test_reward_terms_are_weighted_and_logged_apart_and_a_checker_that_breaks_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming("1234"))
    path = tmp_path / "one.jsonl"
    # The second answer needs a child process, which cannot start. So its checks fail, each worth 0.25.
    path.write_text('{"question": "Give a?", "answer": "1"}\n{"question": "Give b?", "answer": "y + y"}')
    changes = {"episodes": 32, "group_size": 16, "max_new_tokens": 2, "iterations": 1, "failure_reward": 0.25}
    weights = RewardConfig(correctness=2.0, length=0.5)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with VerifierPool(1) as pool:
        monkeypatch.setattr(worker_module, "shared_pool", lambda: pool)
        (row,) = history(train(config(tmp_path / "run", model_folder, f"jsonl:{path}", rewards=weights, **changes)))
    lines = read_completions(tmp_path / "run")
    right = sum(line["correct"] for line in lines)
    assert row["verifier_failures"] == 16
    assert row["reward_correctness"] == pytest.approx((right + 16 * 0.25) / 32)
    assert row["reward_length"] == -1.0  # two of two tokens
    assert row["reward"] == pytest.approx(2 * row["reward_correctness"] - 0.5)
    assert {line["status"] for line in lines if line["question"] == "Give b?"} == {"error"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minibatches": 17}, "minibatches=17 is more than episodes=16"),
        ({"group_size": 3}, "episodes=16 is no multiple of group_size=3"),
        ({"group_size": 1}, "group_size=1 leaves nothing for baseline='group'"),
        ({"iterations": 0}, "iterations=0 must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be more than 0"),
        ({"eval_every": 0}, "eval_every=0 must be at least 1"),
        ({"stop_at": 0.5}, r"stop_at=0.5 is not used without evaluations \(eval_every\)"),
        ({"target_entropy": 0.5}, "target_entropy=0.5 with ent_coef=0.0 cannot be steered to"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, tmp_path, "arith", **changes)


def test_options_that_agree_everywhere_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming("7777"))
    with pytest.raises(ValueError, match="all options lead to the same token at every position, so there is nothing"):
        train(config(tmp_path / "run", model_folder, data))


def test_minibatches_without_a_decision_are_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    tokens = torch.tensor([ids_of("7777"), ids_of(DIGITS)])
    whole_collect = collect

    def options(model: Any, hidden: torch.Tensor) -> torch.Tensor:
        return tokens[1].expand(*hidden.shape[:-1], -1)

    def one_decides(turns: Turns, prompts: list[list[int]], **settings: Any) -> Rollout:
        rollout = whole_collect(turns, prompts, **settings)
        rollout.decisions[1:] = False
        return rollout

    monkeypatch.setattr(OptionModel, "option_tokens", options)
    monkeypatch.setattr(worker_module, "collect", one_decides)
    for algorithm in ("ppo", "reinforce"):
        changes = {"algorithm": algorithm, "iterations": 2, "max_new_tokens": 2}
        out = train(config(tmp_path / algorithm, model_folder, data, **changes))
        assert all(weight.isfinite().all() for weight in weights(out).values())


def test_a_checkpoint_of_another_policy_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(DIGITS))
    settings = config(tmp_path / "run", model_folder, data, iterations=1, policy="latent")
    train(settings)
    # The folder of the model now holds options of another width.
    other = OptionModel.from_backbone(str(tmp_path / "backbone"), OptionConfig(num_options=4, width=16))
    other.save_pretrained(model_folder)
    with pytest.raises(ValueError, match="^model=.* has changed since the run in .* began; give another out folder$"):
        train(settings)
    with pytest.raises(ValueError, match="the checkpoint holds the weights of another policy"):
        load_weights(OptionPolicy(other), weights(settings.out))


def test_a_folder_that_holds_a_different_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(DIGITS))
    out = train(config(tmp_path / "run", model_folder, data, iterations=1))
    before = checkpoint(out)
    with pytest.raises(ValueError, match=r"holds a different run \(learning_rate is 0.01 there, 0.5 here\)"):
        train(config(out, model_folder, data, iterations=1, learning_rate=0.5))
    assert checkpoint(out) == before


def test_options_of_a_folder_without_a_plug_in_are_refused(tmp_path: Path, data: str) -> None:
    with pytest.raises(FileNotFoundError, match="holds neither plug-in, LoRA nor training run; give an option plug-in"):
        train(config(tmp_path / "run", tmp_path / "nowhere", data))
    assert not (tmp_path / "run").exists()


def test_a_baseline_without_groups_takes_single_episodes(tmp_path: Path) -> None:
    assert config(tmp_path, tmp_path, "arith", group_size=1, baseline="mean").baseline == "mean"


def test_evaluating_on_the_training_problems_is_refused(tmp_path: Path, model_folder: Path, data: str) -> None:
    with pytest.raises(ValueError, match="eval_every=16 would evaluate on the training problems; give eval_data"):
        train(config(tmp_path / "run", model_folder, data, eval_every=16))


def test_the_collector_passes_over_what_is_older_than_a_run_only_during_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(DIGITS))
    counts: list[int] = []
    unused: Any = type("Unused", (), {})()
    unused.itself, seen = unused, weakref.ref(unused)
    del unused

    def stop(row: dict[str, float]) -> bool:
        assert seen() is None  # else it would stay as long as the run
        counts.append(gc.get_freeze_count())
        return False

    gc.disable()  # no pass of its own time
    try:
        train(config(tmp_path / "run", model_folder, data), stop)
    finally:
        gc.enable()
    assert counts[0] > 10_000 and gc.get_freeze_count() == 0
