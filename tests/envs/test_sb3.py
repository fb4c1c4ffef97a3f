"""The adapter for stable-baselines3."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from ollm_rl.envs.sb3 import TextGenVecEnv
from ollm_rl.envs.text_gen import TextGenEnv
from tests.envs.test_autoreset import vector_env
from tests.envs.test_text_gen import ID, PROBLEMS, random_actions, settings


@pytest.mark.filterwarnings("ignore:.*(is probably too (low|high)|No render fps)")
def test_the_checkers_of_gymnasium_and_sb3_pass() -> None:
    text = gymnasium.make(ID, **settings(observation_mode="hidden+text"), render_mode="ansi").unwrapped
    gymnasium.utils.env_checker.check_env(text)
    check_env(TextGenEnv(**settings()), warn=False)
    check_env(TextGenEnv(**settings(action_space="tokens")), warn=False)


def test_the_adapter_returns_what_sb3s_own_vector_environment_returns() -> None:
    shared = settings(action_space="tokens", max_new_tokens=8, problems=PROBLEMS[:1])
    ours = TextGenVecEnv(vector_env(AutoresetMode.SAME_STEP, problems=PROBLEMS[:1]))
    theirs = DummyVecEnv([lambda: TextGenEnv(**shared)] * 3)
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    expected: Any = theirs.reset()
    found: Any = ours.reset()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert ours.reset_infos == theirs.reset_infos
    actions = random_actions(3, seed=1)
    seen = set()
    for _ in range(30):
        taken = next(actions)
        found, *results, infos = ours.step(taken)
        expected, *wanted, facts = theirs.step(taken)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        for one, other in zip(results, wanted, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        for info, fact in zip(infos, facts, strict=True):
            if "terminal_observation" in fact:
                seen.add(fact["TimeLimit.truncated"])
                last, other = info.pop("terminal_observation"), fact.pop("terminal_observation")
                np.testing.assert_allclose(last, other, rtol=1e-4, atol=1e-5)
            assert info == fact
        assert ours.reset_infos == theirs.reset_infos
    assert seen == {True, False}


def test_sb3s_ppo_learns_on_the_adapter_with_its_monitor() -> None:
    vec = VecMonitor(TextGenVecEnv(vector_env(AutoresetMode.SAME_STEP, 4, action_space="options")))
    agent = PPO("MlpPolicy", vec, n_steps=16, batch_size=32, n_epochs=2, seed=0, device="cpu")
    before = [weight.clone() for weight in agent.policy.parameters()]
    agent.learn(128)
    assert any(not torch.equal(one, other) for one, other in zip(before, agent.policy.parameters(), strict=True))
    assert {info["l"] for info in agent.ep_info_buffer or ()} == {8}
    vec.close()


def test_the_adapter_refuses_modes_that_sb3_does_not_support() -> None:
    with pytest.raises(ValueError, match="autoreset_mode='NextStep' does not suit SB3; give 'SameStep'"):
        TextGenVecEnv(vector_env(AutoresetMode.NEXT_STEP))
    with pytest.raises(ValueError, match="observation_mode='hidden\\+text' does not suit SB3"):
        TextGenVecEnv(vector_env(AutoresetMode.SAME_STEP, observation_mode="hidden+text"))
    vec = TextGenVecEnv(vector_env(AutoresetMode.SAME_STEP, 2))
    assert vec.get_attr("num_envs") == [2, 2] and not vec.has_attr("nothing")
    assert vec.env_is_wrapped(gymnasium.Wrapper) == [False, False]
    for call in (lambda: vec.env_method("reset"), lambda: vec.set_attr("num_envs", 3)):
        with pytest.raises(NotImplementedError, match="all share one engine"):
            call()
