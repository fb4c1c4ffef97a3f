"""A model with one option, the control in which a policy has no choice: every stage runs, and nothing is learned."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.evaluation.free_running import evaluate
from ollm_rl.agents.policies.anchored import AnchoredPolicy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.search.config import SearchSettings
from ollm_rl.agents.search.run import search
from ollm_rl.agents.training.run import train_agent
from ollm_rl.agents.training.trainer import build_trainer, train
from ollm_rl.cli import main
from ollm_rl.envs.text_gen import TextGenEnv
from ollm_rl.envs.vector import TextGenVectorEnv
from ollm_rl.errors import UsageError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.hub import model_card
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.sft import run_sft
from ollm_rl.pretrain.teacher_forced import teacher_forced
from ollm_rl.problems.problem import Problem
from tests.tiny_models import VOCAB, save_backbone, tiny_model, tiny_tokenizer
from tests.training_runs import assert_equal_runs, config, history, ids_of

PROBLEMS = [
    Problem(id=name, question=f"Give {name}?", solution="#### 7", answer="7", language="en") for name in ("a", "bc")
]
LENGTH = 6


def option_model(**settings: Any) -> OptionModel:
    torch.manual_seed(0)
    return OptionModel(tiny_model("llama"), OptionConfig(num_options=1, width=16, **settings)).eval()


def written(model: OptionModel, prompt: list[int]) -> list[int]:
    """What the only option writes: its most probable token after the prompt, and so on, one pass for each."""
    ids = [*prompt]
    for _ in range(LENGTH):
        hidden = model.hidden_states(torch.tensor([ids]))[0, -1]
        logits = model.backbone.lm_head(hidden + model.adapter.biases(hidden)[0])
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model of one option with its backbone."""
    torch.manual_seed(0)
    name = save_backbone(tmp_path / "backbone")
    OptionModel.from_backbone(name, OptionConfig(num_options=1, width=8)).save_pretrained(tmp_path / "one")
    return tmp_path / "one"


@pytest.mark.parametrize("policy_objective", ["imitation", "marginal"])
@pytest.mark.parametrize("prior", ["uniform", "policy"])
@pytest.mark.parametrize("estimator", ["exact", "gumbel"])
def test_the_loss_is_the_decoders_cross_entropy(estimator: str, prior: str, policy_objective: str) -> None:
    settings: dict[str, Any] = {"estimator": estimator, "prior": prior, "policy_objective": policy_objective}
    if estimator == "gumbel" and policy_objective == "marginal":
        with pytest.raises(UsageError, match="needs the loss of every option"):
            OptionConfig(num_options=1, **settings)
        return
    model = option_model(**settings)
    ids = torch.randint(1, VOCAB, (1, 7), generator=torch.Generator().manual_seed(1))
    hidden, targets, _ = states = model.counted_states(ids, ids)
    logits = model.backbone.lm_head(hidden + model.adapter.biases(hidden)[:, 0])
    expected = F.cross_entropy(logits, targets)
    gradients = torch.autograd.grad(expected, list(model.adapter.decoder_out.parameters()))
    output = model.loss(states)
    output.loss.backward()
    torch.testing.assert_close(output.cross_entropy, expected)
    assert float(output.kl) == 0
    # The policy is sure of the option, so it imitates it perfectly, and the mixture is the option.
    torch.testing.assert_close(output.policy_loss, expected if policy_objective == "marginal" else torch.tensor(0.0))
    torch.testing.assert_close(output.loss, output.cross_entropy + output.policy_loss)
    for parameter, gradient in zip(model.adapter.decoder_out.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    for part in (model.adapter.encoder, model.adapter.policy):
        assert all(weight.grad is None or not weight.grad.any() for weight in part.parameters())


@pytest.mark.parametrize("options", [{}, {"prior": "policy"}, {"estimator": "gumbel", "prior": "policy"}])
def test_the_supervised_stage_trains_the_decoder_and_leaves_the_kl_weight(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    rows = [{"question": f"{a}+{b}?", "solution": f"#### {a + b}", "answer": a + b} for a in range(6) for b in range(6)]
    (tmp_path / "solved.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with caplog.at_level(logging.WARNING, logger="ollm_rl"):
        out = run_sft(
            SFTConfig(
                out=tmp_path / "run",
                backbone=save_backbone(tmp_path / "backbone"),
                data=f"jsonl:{tmp_path / 'solved.jsonl'}",
                max_steps=20,
                batch_size=8,
                learning_rate=1e-2,
                save_steps=20,
                logging_steps=5,
                device="cpu",
                options=OptionConfig(num_options=1, width=8, kl_weight_init=0.25, **options),
            )
        )
    assert not caplog.records
    lines = [line for line in json.loads((out / "metrics.json").read_text()) if "loss" in line]
    assert len(lines) == 4 and lines[-1]["cross_entropy"] < lines[0]["cross_entropy"]
    for line in lines:
        assert all(math.isfinite(value) for value in line.values()), line
        measured = [line[name] for name in ("kl", "kl_weight", "option_usage", "distinct_tokens", "live_share")]
        assert measured == [0, 0.25, 1, 1, 0]
        assert "mode_coverage_live" not in line
    assert OptionModel.from_pretrained(out).option_config.num_options == 1


def test_an_identity_option_needs_another_to_train() -> None:
    with pytest.raises(UsageError, match="^identity_option leaves none of num_options=1 to train; raise num_options$"):
        OptionConfig(num_options=1, identity_option=True)


def test_it_is_saved_loaded_and_described(folder: Path) -> None:
    model = OptionModel.from_pretrained(folder)
    model.save_pretrained(folder.parent / "again")
    again = OptionModel.from_pretrained(folder.parent / "again")
    hidden = torch.randn(3, model.hidden_size)
    assert torch.equal(again.decode_options(hidden), model.decode_options(hidden))
    description = json.loads((folder / "option_config.json").read_text())
    card = model_card(description, repo_id="user/one")
    assert "1 learned option for the next token" in card and "One option leaves a policy no choice" in card


@pytest.mark.parametrize("option", ["policy", "sampled", 0, torch.tensor([0])])
def test_generate_writes_what_the_option_names(option: Any) -> None:
    model, prompt = option_model(), ids_of("Give a?\n")
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, option=option, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LENGTH
    )
    assert output[0, len(prompt) :].tolist() == written(model, prompt)


def test_the_environments_have_one_action() -> None:
    model = option_model()
    settings: dict[str, Any] = {"problems": PROBLEMS, "tokenizer": tiny_tokenizer(), "max_new_tokens": LENGTH}
    env = TextGenEnv(model=model, **settings)
    assert env.action_space == gymnasium.spaces.Discrete(1)
    _, info = env.reset(options={"problem": 0})
    ended = False
    while not ended:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        ended = terminated or truncated
    assert info["completion"] == tiny_tokenizer().decode(written(model, ids_of("Give a?\n")), skip_special_tokens=True)
    envs = TextGenVectorEnv(3, model, **settings, info_fields=["option_tokens", "live", "start_log_probs"])
    _, infos = envs.reset(seed=0)
    assert infos["option_tokens"].shape == (3, 1)
    assert not infos["live"].any() and not infos["start_log_probs"].any()
    envs.step(np.zeros(3, dtype=np.int64))
    with pytest.raises(UsageError, match="action 1 is out of range; options go from 0 to 0"):
        envs.step(np.ones(3, dtype=np.int64))


@pytest.mark.parametrize("make", [OptionPolicy, AnchoredPolicy])
@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "ppo", "epochs": 2},
        {"ratio": "topr", "replay": 2, "replay_steps": 2},
        {"kl_coef": 0.1, "kl_target": 0.1, "ent_coef": 0.1, "target_entropy": 0.5},
    ],
)
def test_an_update_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, changes: dict[str, Any]
) -> None:
    policy = make(option_model())
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    trainer = build_trainer(config(tmp_path, tmp_path, "unused", **changes), policy, tiny_tokenizer(), PROBLEMS)
    trainer.run()
    assert len(trainer.history) == 4
    for row in trainer.history:
        assert all(math.isfinite(value) for value in row.values()), row
        assert row["live_share"] == row["entropy"] == row["kl"] == row["policy_loss"] == row["grad_norm"] == 0
    assert all(torch.equal(weight, before[name]) for name, weight in policy.named_parameters())
    printed = capsys.readouterr()
    assert "hardly chooses" not in printed.out + printed.err and "of the groups" not in printed.out + printed.err


def test_a_run_resumes(folder: Path, data: str) -> None:
    whole, parts = folder.parent / "whole", folder.parent / "parts"
    settings: dict[str, Any] = {"policy": "latent", "replay": 2}
    train(config(whole, folder, data, **settings))
    for iterations in (2, 4):
        train(config(parts, folder, data, **settings, iterations=iterations))
    assert_equal_runs(whole, parts)


@pytest.mark.parametrize("agent", ["sb3-ppo", "sb3-dqn"])
def test_agents_of_sb3_run(folder: Path, data: str, agent: str) -> None:
    changes: dict[str, Any] = {"minibatches": 2, "epochs": 1} if agent == "sb3-ppo" else {}
    out = train_agent(
        RLConfig(
            out=folder.parent / "run",
            model=str(folder),
            data=data,
            agent=agent,  # type: ignore[arg-type]
            episodes=8,
            iterations=2,
            max_new_tokens=2,
            n_steps=4,
            device="cpu",
            **changes,
        )
    )
    for row in history(out):
        assert all(math.isfinite(value) for value in row.values()), row


def test_greedy_and_sampled_completions_are_the_options() -> None:
    model = option_model()
    expected = [written(model, ids_of(f"{problem.question}\n")) for problem in PROBLEMS]
    texts = [tiny_tokenizer().decode(tokens, skip_special_tokens=True) for tokens in expected]
    sampled: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "temperature": 2.0}
    for policy in (OptionPolicy(model), AnchoredPolicy(model)):
        for settings in ({}, sampled):
            result = evaluate(policy, tiny_tokenizer(), PROBLEMS, max_new_tokens=LENGTH, **settings)
            assert [row["completion"] for row in result["completions"]] == texts


@pytest.mark.parametrize("method", ["best-of-n", "beam", "mcts"])
def test_a_search_finds_one_completion(method: str) -> None:
    model = option_model()
    settings = SearchSettings(method=method, budget_tokens=3 * LENGTH, max_new_tokens=LENGTH)  # type: ignore[arg-type]
    result = search(OptionPolicy(model), tiny_tokenizer(), PROBLEMS, settings)
    for problem, row in zip(PROBLEMS, result["problems"], strict=True):
        tokens = written(model, ids_of(f"{problem.question}\n"))
        text = tiny_tokenizer().decode(tokens, skip_special_tokens=True)
        found = [completion["completion"] for completion in row["completions"]]
        assert found == [text] * (3 if method == "best-of-n" else 1)


def test_teacher_forcing_finds_no_choice_that_reveals_anything() -> None:
    result = teacher_forced(option_model(), tiny_tokenizer(), PROBLEMS)
    columns = result["columns"]
    for name in ("encoder", "policy", "mixture"):
        assert columns[name]["token_accuracy"] == columns["oracle"]["token_accuracy"]
        assert columns[name]["nll"] == pytest.approx(columns["oracle"]["nll"])
    assert columns["oracle"]["information"] == [0, 0, 0] and columns["oracle"]["gain_per_nat"] is None
    assert result["options"]["distinct_tokens"] == [1, 1, 1] and result["options"]["mode_coverage_live"] is None
    assert result["options"]["mutual_information"] == pytest.approx([0, 0, 0], abs=1e-5)


def test_a_report_says_that_there_is_nothing_to_explore(
    folder: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    train(config(folder.parent / "run", folder, data, policy="latent"))
    assert main(["eval", "--model", "one", "run", "--data", data, "--max_new_tokens", "3", "--out", "results"]) == 0
    assert main(["report", "run", "--results", "results", "--out", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "run has no explorer here: it has only one option." in page and "Option explorer" not in page
    assert main(["explore", "--model", "one", "--prompt", "Give a?", "--max_new_tokens", "3", "--out", "e.html"]) == 0
