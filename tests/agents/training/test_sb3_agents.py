"""Agents of SB3 on the environment: they learn, resume after a kill, and agree with ours to the last digits."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ollm_rl.agents.training.sb3 as sb3_module
import ollm_rl.agents.workers.local as worker_module
from ollm_rl.agents.completions import read_completions
from ollm_rl.agents.config import RewardConfig, RLConfig
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.training.run import train_agent
from ollm_rl.agents.training.trainer import build_trainer
from ollm_rl.decode.rollout import Rollout, collect
from ollm_rl.envs.sb3 import TextGenVecEnv
from ollm_rl.envs.vector import TextGenVectorEnv
from ollm_rl.errors import DamagedError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.sources import load_problems
from tests.damage import empty, flip, truncate
from tests.tiny_models import save_backbone, tiny_tokenizer

DIGITS = "1234"


@pytest.fixture(autouse=True)
def options_name_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of four options leads to one digit, in every state."""
    tokens = torch.tensor(tiny_tokenizer()(DIGITS).input_ids)
    monkeypatch.setattr(OptionModel, "option_tokens", lambda model, hidden: tokens.expand(*hidden.shape[:-1], -1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder with an option model of four options and four problems, each of which asks for one digit."""
    torch.manual_seed(0)
    name = save_backbone(tmp_path / "backbone")
    OptionModel.from_backbone(name, OptionConfig(num_options=4, width=16)).save_pretrained(tmp_path / "options")
    rows = [{"question": letter, "answer": digit} for letter, digit in zip("wxyz", DIGITS, strict=True)]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def config(folder: Path, name: str, agent: str, **changes: Any) -> RLConfig:
    settings: dict[str, Any] = {
        "out": folder / name,
        "model": str(folder / "options"),
        "data": f"jsonl:{folder / 'problems.jsonl'}",
        "agent": agent,
        "episodes": 64,
        "iterations": 30,
        "max_new_tokens": 1,
        "learning_rate": 1e-2,
        "device": "cpu",
    }
    if agent != "ollm-rl":
        settings["n_steps"] = 1
    if agent not in ("sb3-a2c", "sb3-dqn"):
        settings |= {"minibatches": 2, "epochs": 2}
    return RLConfig(**settings | changes)


def rows(out: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((out / "metrics.json").read_text())
    return found


@pytest.mark.parametrize(
    ("agent", "changes"),
    [
        ("ollm-rl", {"algorithm": "ppo", "policy": "latent"}),
        ("sb3-ppo", {}),
        ("sb3-a2c", {"learning_rate": 1e-3, "iterations": 50}),
        ("sb3-dqn", {"iterations": 20}),
        ("sb3-recurrent-ppo", {"iterations": 12}),
    ],
)
def test_every_agent_learns_which_token_each_prompt_asks_for(folder: Path, agent: str, changes: dict[str, Any]) -> None:
    rewards = [row["reward"] for row in rows(train_agent(config(folder, "run", agent, **changes)))]
    assert rewards[0] < 0.5  # chance is 0.25
    assert rewards[-1] > 0.9, rewards


def test_a_run_counts_episodes_as_ours_do_and_keeps_what_was_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.tensor(tiny_tokenizer()("12 ;").input_ids)
    monkeypatch.setattr(OptionModel, "option_tokens", lambda model, hidden: ids.expand(*hidden.shape[:-1], -1))
    weights = RewardConfig(correctness=2.0, length=0.5)
    changes: dict[str, Any] = {"episodes": 6, "num_slots": 4, "iterations": 3, "max_new_tokens": 2}
    reported: list[dict[str, float]] = []
    out = train_agent(config(folder, "run", "sb3-ppo", rewards=weights, n_steps=3, **changes), reported.append)
    found, written = rows(out), read_completions(out)
    assert reported == found
    assert [row["episodes"] for row in found] == [6, 12, 18]
    # Four slots write two tokens per episode: after 16 tokens 8 episodes have ended, after 24 twelve, after 40 twenty.
    assert [row["timesteps"] for row in found] == [16, 24, 40]
    assert [line["iteration"] for line in written] == [number for number in range(3) for _ in range(6)]
    for number, row in enumerate(found):
        right = [line["correct"] for line in written if line["iteration"] == number]
        assert row["reward_correctness"] == sum(right) / 6
        assert (row["reward_length"], row["completion_tokens"], row["degeneracy_rate"]) == (-1, 2, 1)
        assert row["reward"] == pytest.approx(2 * row["reward_correctness"] - 0.5)
    assert {(line["question"], line["answer"]) for line in written} <= set(zip("wxyz", DIGITS, strict=True))
    # w asks for 1 and x for 2; a text without other digits answers them.
    solving = {"w": {"1 ", " 1", "1;", ";1"}, "x": {"2 ", " 2", "2;", ";2"}}
    assert {line["correct"] for line in written} == {True, False}
    assert all(line["correct"] == (line["completion"] in solving.get(line["question"], ())) for line in written)
    assert {"policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"} <= found[-1].keys()
    assert 0 < found[-1]["entropy"] <= np.log(4)
    points = EventAccumulator(str(out)).Reload().Scalars("rollout/reward")
    assert [(point.step, point.value) for point in points] == [
        (row["episodes"], pytest.approx(row["reward"])) for row in found
    ]
    assert PPO.load(out / "model.zip").num_timesteps == 40


@pytest.mark.parametrize("agent", ["sb3-ppo", "sb3-dqn"])
def test_a_stopped_run_resumes_with_its_weights_and_replay_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    settings = config(folder, "run", agent, iterations=5)

    def stop(row: dict[str, float]) -> None:
        if row["iteration"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_agent(settings, stop)
    before = rows(settings.out)
    assert len(before) == 3
    # A kill between the two files leaves a row whose model was never written.
    (settings.out / "metrics.json").write_text(json.dumps([*before, {**before[-1], "timesteps": 1e6}]))
    agent_class = sb3_module.AGENTS[agent]
    saved = agent_class.load(settings.out / "model.zip", device="cpu").policy.state_dict()
    whole_learn = agent_class.learn
    begun: list[Any] = []

    def learn(self: Any, *arguments: Any, **named: Any) -> Any:
        begun.append((self.num_timesteps, {name: value.clone() for name, value in self.policy.state_dict().items()}))
        if agent == "sb3-dqn":
            assert self.replay_buffer.size() * self.n_envs == 3 * 64 - self.n_envs  # all but the step of the stop
        return whole_learn(self, *arguments, **named)

    monkeypatch.setattr(agent_class, "learn", learn)
    train_agent(settings)
    ((timesteps, weights),) = begun
    assert timesteps == 3 * 64
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[name], saved[name]) for name in saved)
    after = rows(settings.out)
    assert after[:3] == before
    assert [row["episodes"] for row in after] == [64, 128, 192, 256, 320]
    assert [row["timesteps"] for row in after] == [64, 128, 192, 256, 320]
    train_agent(settings)  # the same command again finds nothing to do
    assert rows(settings.out) == after and len(begun) == 1


def test_a_callback_may_stop_the_run(folder: Path) -> None:
    settings = config(folder, "run", "sb3-a2c", iterations=5)
    train_agent(settings, lambda row: row["episodes"] < 128)
    assert [row["episodes"] for row in rows(settings.out)] == [64, 128]


def their_ppo(settings: RLConfig, vec: TextGenVecEnv, policy: OptionPolicy) -> PPO:
    """SB3's PPO with our settings and networks, and with torch's default Adam."""
    same = ("learning_rate", "gamma", "gae_lambda", "clip_range", "vf_coef", "ent_coef", "max_grad_norm")
    length, count = settings.max_new_tokens, settings.episodes
    theirs = PPO(
        "MlpPolicy", vec, n_steps=length, batch_size=count * length, n_epochs=settings.epochs, device="cpu",
        policy_kwargs={"net_arch": []}, **{name: getattr(settings, name) for name in same},
    )  # fmt: skip
    networks: Any = theirs.policy
    networks.action_net, networks.value_net = copy.deepcopy((policy.policy, policy.value_head))
    theirs.policy.optimizer = torch.optim.Adam(theirs.policy.parameters(), lr=settings.learning_rate)
    theirs.set_logger(configure(None, []))
    return theirs


def fill_buffer(theirs: PPO, rollout: Rollout, rewards: list[float], ids: torch.Tensor) -> None:
    """Put our episodes, which no option ends, into SB3's buffer; ``ids`` are the options' tokens."""
    buffer = theirs.rollout_buffer
    assert isinstance(buffer, RolloutBuffer)
    count, length = rollout.tokens.shape
    for step in range(length):
        options = (rollout.tokens[:, step, None] == ids).long().argmax(1)
        buffer.add(
            rollout.stored["hidden_states"][:, step].numpy(),
            options.numpy(),
            np.array(rewards if step == length - 1 else [0.0] * count),
            np.full(count, step == 0),
            rollout.values[:, step],
            rollout.log_probs[:, step],
        )
    buffer.compute_returns_and_advantage(torch.zeros(count), np.ones(count, dtype=bool))


def test_our_ppo_makes_the_update_that_sb3s_makes_of_the_same_episodes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No option ends a text, so every episode has three decisions; its last number is its answer.
    count, length, ids = 16, 3, torch.tensor(tiny_tokenizer()("12 ;").input_ids)
    monkeypatch.setattr(OptionModel, "option_tokens", lambda model, hidden: ids.expand(*hidden.shape[:-1], -1))
    changes: dict[str, Any] = {
        "algorithm": "ppo", "episodes": count, "group_size": 4, "iterations": 1, "max_new_tokens": length,
        "minibatches": 1, "epochs": 4, "clip_range": 0.02, "gamma": 0.9, "gae_lambda": 0.8, "vf_coef": 0.7,
        "ent_coef": 0.03, "max_grad_norm": 0.3,
    }  # fmt: skip
    settings = config(folder, "run", "ollm-rl", **changes)
    problems = load_problems(settings.data)
    problems = [dataclasses.replace(problem, answer="1") for problem in problems]
    model = OptionModel.from_pretrained(settings.model)
    policy = OptionPolicy(model)
    vec = TextGenVecEnv(TextGenVectorEnv(count, model, problems, max_new_tokens=length, autoreset_mode="SameStep"))
    theirs = their_ppo(settings, vec, policy)
    rollouts: list[Rollout] = []

    def recording(*arguments: Any, **named: Any) -> Rollout:
        rollouts.append(collect(*arguments, **named))
        return rollouts[-1]

    monkeypatch.setattr(worker_module, "collect", recording)
    trainer = build_trainer(settings, policy, tiny_tokenizer(), problems)
    trainer.run()
    (rollout,) = rollouts
    assert rollout.decisions.all() and rollout.tokens.shape == (count, length)
    rewards = [line["reward"] for line in read_completions(settings.out)]
    assert 0 < sum(rewards) < count
    fill_buffer(theirs, rollout, rewards, ids)
    theirs.train()

    ours, logged = trainer.history[0], theirs.logger.name_to_value
    assert ours["clip_fraction"] > 0.1  # the ratio has left the bounds: both sides of the minimum count
    assert ours["policy_loss"] == pytest.approx(logged["train/policy_gradient_loss"], abs=1e-5)
    assert ours["value_loss"] == pytest.approx(logged["train/value_loss"], abs=1e-5)
    assert ours["entropy"] == pytest.approx(-logged["train/entropy_loss"], abs=1e-5)
    assert ours["clip_fraction"] == pytest.approx(logged["train/clip_fraction"], abs=1e-5)
    # Four steps of Adam later the weights agree, so the whole gradients did.
    for net, other in ((policy.policy, theirs.policy.action_net), (policy.value_head, theirs.policy.value_net)):
        for one, two in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_space": "tokens"}, "agent='sb3-ppo' acts over options; leave action_space='tokens' out"),
        ({"failure_reward": 0.5}, "failure_reward=0.5 is not used by agent=sb3-ppo; leave it out"),
        ({"eval_every": 64}, "eval_every=64 is not used by agent=sb3-ppo; leave it out"),
        ({"kl_coef": 0.1}, "kl_coef=0.1 is not used by agent=sb3-ppo; leave it out"),
        ({"workers": 1}, "workers=1 is not used by agent=sb3-ppo; leave it out"),
        ({"n_steps": 0}, "n_steps=0 must be at least 1"),
        ({"minibatches": 40}, "n_steps=1 of 64 episodes are too few for minibatches=40; raise n_steps"),
    ],
)
def test_settings_that_sb3_does_not_know_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_agent(config(folder, "run", "sb3-ppo", **changes))
    assert not (folder / "run").exists()


def test_an_evaluation_of_an_sb3_run_says_what_reads_its_model(folder: Path) -> None:
    out = train_agent(config(folder, "run", "sb3-ppo", iterations=1))
    with pytest.raises(ValueError, match=r"holds an agent of stable-baselines3.*PPO\.load\('.*model\.zip'\)"):
        load_policy(str(out))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.zip", flip, "is damaged: its checksum differs; train again in another out folder"),
        ("model.zip", empty, "is damaged .*; train again in another out folder"),
        ("replay_buffer.pt", flip, "is damaged: its checksum differs"),
        ("metrics.json", truncate, "cannot be read .*; train again in another out folder"),
    ],
)
def test_a_damaged_file_gets_one_line(folder: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    settings = config(folder, "run", "sb3-dqn", iterations=1, episodes=8)
    damage(train_agent(settings) / name)
    with pytest.raises(DamagedError, match=f"^{settings.out / name} {message}"):
        train_agent(settings)
