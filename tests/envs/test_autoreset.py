"""The vector environment's three autoreset modes against Gymnasium's own and a hand loop, and its adapter for SB3."""

from collections import defaultdict
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DtypeObservation, RecordEpisodeStatistics, TransformReward
from stable_baselines3.common.buffers import RolloutBuffer

from ollm_rl.envs.sb3 import TextGenVecEnv
from ollm_rl.envs.text_gen import TextGenEnv
from ollm_rl.envs.vector import TextGenVectorEnv
from tests.envs.test_text_gen import ID, PROBLEMS, RIGHT, ids_of, random_actions, settings
from tests.tiny_models import EOS, HIDDEN, VOCAB

MODES = list(AutoresetMode)
GAMMA, LAMBDA = 0.9, 0.8
CALLS = 70


def vector_env(mode: AutoresetMode, count: int = 3, **changes: Any) -> TextGenVectorEnv:
    return TextGenVectorEnv(
        count, **settings(**{"action_space": "tokens", "max_new_tokens": 8} | changes), autoreset_mode=mode
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_declared_mode_is_that_of_the_instance(mode: AutoresetMode) -> None:
    envs = gymnasium.make_vec(ID, num_envs=2, autoreset_mode=mode, **settings())
    assert isinstance(envs, TextGenVectorEnv)
    assert envs.metadata["autoreset_mode"] is mode
    assert vector_env(mode.value).metadata["autoreset_mode"] is mode  # type: ignore[arg-type]
    assert TextGenVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="autoreset_mode='sometimes' is unknown; give one of NextStep, SameStep"):
        vector_env("sometimes")  # type: ignore[arg-type]


def assert_equal_infos(found: Any, expected: Any) -> None:
    """Nested infos are equal, hidden states in them up to floating-point noise."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal_infos(found[key], expected[key])
    elif expected.dtype == object and any(isinstance(value, np.ndarray) for value in expected):
        for one, other in zip(found, expected, strict=True):
            assert (one is None) == (other is None)
            if other is not None:
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_that_of_gymnasiums_own_vector_environment(mode: AutoresetMode) -> None:
    # With one problem both draw the same.
    ours = vector_env(mode, problems=PROBLEMS[:1])
    single = settings(action_space="tokens", max_new_tokens=8, problems=PROBLEMS[:1])
    theirs = SyncVectorEnv([lambda: TextGenEnv(**single)] * 3, autoreset_mode=mode)
    assert theirs.metadata["autoreset_mode"] == ours.metadata["autoreset_mode"] == mode
    assert (ours.action_space, ours.observation_space) == (theirs.action_space, theirs.observation_space)
    found, expected = ours.reset(seed=0)[0], theirs.reset(seed=0)[0]
    actions = random_actions(3, seed=1)
    ended = 0
    for _ in range(30):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        taken = next(actions)
        found, *results, infos = ours.step(taken)
        expected, *wanted, facts = theirs.step(taken)
        for one, other in zip(results, wanted, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        assert_equal_infos(infos, facts)
        over = results[1] | results[2]
        ended += over.sum()
        if mode == AutoresetMode.DISABLED and over.any():
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            found, infos = ours.reset(options={"reset_mask": over})
            expected, facts = theirs.reset(options={"reset_mask": over})
            assert_equal_infos(infos, facts)
    assert ended > 5


# A fixed policy and value: episodes depend only on the drawn problems, so the modes can be compared.
PROJECTION = np.random.default_rng(0).normal(size=(HIDDEN, VOCAB))
VALUES = np.random.default_rng(1).normal(size=HIDDEN)


def act(observations: np.ndarray) -> np.ndarray:
    scores = observations @ PROJECTION
    scores[..., EOS] += 1.3 * scores.std(-1)  # so that some episodes end before the limit
    return scores.argmax(-1)


def value(observations: np.ndarray) -> Any:
    return np.tanh(observations @ VALUES)


def reward_of(actions: Any) -> Any:
    """Shaped rewards, since the random model never answers right and zeros would test nothing."""
    return np.sin(actions)


def streams(mode: AutoresetMode) -> dict[int, list[tuple[float, float, float, bool]]]:
    """The steps of every environment in order: value before, reward, value after (0 at a true end), whether it ended.

    They are collected from a vector environment as an agent in that mode has to.
    """
    envs = vector_env(mode)
    observations, _ = envs.reset(seed=4)
    found: dict[int, list[tuple[float, float, float, bool]]] = defaultdict(list)
    began = np.zeros(3, dtype=bool)  # by the next step of mode NEXT_STEP, which belongs to no episode
    for _ in range(CALLS):
        actions = act(observations)
        following, _, terminations, truncations, infos = envs.step(actions)
        over = terminations | truncations
        last = following.copy()
        if mode == AutoresetMode.SAME_STEP and over.any():
            last[over] = np.stack(infos["final_obs"][over])
        after = np.where(terminations, 0.0, value(last))
        for slot in np.flatnonzero(~began).tolist():
            step = (value(observations)[slot], reward_of(actions)[slot], after[slot], bool(over[slot]))
            found[slot].append(step)
        if mode == AutoresetMode.NEXT_STEP:
            began = over
        if mode == AutoresetMode.DISABLED and over.any():
            following, _ = envs.reset(options={"reset_mask": over})
        observations = following
    return found


def advantages(steps: list[tuple[float, float, float, bool]]) -> np.ndarray:
    """GAE, backwards over a stream of complete episodes."""
    result, running = [], 0.0
    for before, reward, after, over in reversed(steps):
        running = reward + GAMMA * after - before + (0.0 if over else GAMMA * LAMBDA * running)
        result.append(running)
    return np.array(result[::-1])


def by_hand(slot: int, episodes: int) -> list[np.ndarray]:
    """GAE of the episodes of single environments by its definition, a sum of discounted one-step errors (eq. 16)."""
    env = TextGenEnv(**settings(action_space="tokens", max_new_tokens=8))
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(4).spawn(3)[slot]))
    found = []
    for _ in range(episodes):
        observation, _ = env.reset(options={"problem": int(generator.integers(len(PROBLEMS)))})
        values, rewards, terminated, truncated = [value(observation)], list[float](), False, False
        while not (terminated or truncated):
            action = np.int64(act(observation))
            observation, _, terminated, truncated, _ = env.step(action)
            rewards.append(float(reward_of(action)))
            values.append(0.0 if terminated else value(observation))
        errors = [reward + GAMMA * values[t + 1] - values[t] for t, reward in enumerate(rewards)]
        found.append(
            np.array(
                [
                    sum((GAMMA * LAMBDA) ** (later - t) * errors[later] for later in range(t, len(errors)))
                    for t in range(len(errors))
                ]
            )
        )
    return found


def test_advantages_are_those_of_a_hand_loop_in_every_mode() -> None:
    ends, lengths = 0, set()
    for slot in range(3):
        expected = by_hand(slot, 6)
        lengths |= set(map(len, expected))
        wanted = np.concatenate(expected)
        for mode in MODES:
            steps = streams(mode)[slot][: len(wanted)]
            np.testing.assert_allclose(advantages(steps), wanted, rtol=1e-3, atol=1e-3)
            ends += sum(over for *_, over in steps)
    assert ends == 3 * 3 * 6
    assert 8 in lengths and len(lengths) > 1, "episodes that all end alike would test little"


def test_sb3s_own_advantages_on_the_adapter_are_those_of_a_hand_loop() -> None:
    vec = TextGenVecEnv(vector_env(AutoresetMode.SAME_STEP))
    buffer = RolloutBuffer(
        40, vec.observation_space, vec.action_space, gamma=GAMMA, gae_lambda=LAMBDA, n_envs=vec.num_envs
    )
    vec.seed(4)
    observations: Any = vec.reset()
    starts = np.ones(3, dtype=bool)
    for _ in range(40):
        actions = act(observations)
        following, _, over, infos = vec.step(actions)
        rewards = reward_of(actions).astype(np.float32)
        for slot in np.flatnonzero(over).tolist():  # as SB3's OnPolicyAlgorithm.collect_rollouts does
            if infos[slot]["TimeLimit.truncated"]:
                rewards[slot] += GAMMA * value(infos[slot]["terminal_observation"])
        values = torch.from_numpy(value(observations))
        buffer.add(observations, actions, rewards, starts, values, torch.zeros(3))
        observations, starts = following, over
    buffer.compute_returns_and_advantage(torch.from_numpy(value(observations)), over)
    for slot in range(3):
        wanted = np.concatenate(by_hand(slot, 3))
        np.testing.assert_allclose(buffer.advantages[: len(wanted), slot], wanted, rtol=1e-3, atol=1e-3)


def test_a_masked_reset_leaves_the_other_episodes_as_they_were() -> None:
    envs, undisturbed = vector_env(AutoresetMode.DISABLED), vector_env(AutoresetMode.DISABLED)
    for each in (envs, undisturbed):
        each.reset(seed=0)
        each.step(np.array([20, 21, 22]))
    mask = np.array([False, True, False])
    _, infos = envs.reset(seed=9, options={"reset_mask": mask})
    assert infos["_problem"].tolist() == mask.tolist()
    found, expected = envs.step(np.array([30, 31, 32])), undisturbed.step(np.array([30, 31, 32]))
    for slot in (0, 2):
        np.testing.assert_allclose(found[0][slot], expected[0][slot], rtol=1e-4, atol=1e-5)  # type: ignore[index]


@pytest.mark.parametrize(
    "mask", [[True, False, True], np.ones(2, dtype=bool), np.ones(3, dtype=int), np.zeros(3, dtype=bool)]
)
def test_a_mask_of_another_shape_or_kind_is_refused(mask: Any) -> None:
    envs = vector_env(AutoresetMode.DISABLED)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="must be an array of 3 truth values, at least one of them true"):
        envs.reset(options={"reset_mask": mask})
    with pytest.raises(ValueError, match="reset option 'problem' is unknown"):
        envs.reset(options={"problem": 0})


def test_a_masked_first_reset_is_refused() -> None:
    with pytest.raises(ValueError, match="the first reset must begin all environments"):
        vector_env(AutoresetMode.DISABLED).reset(options={"reset_mask": np.array([True, False, False])})


def test_with_autoreset_disabled_a_step_after_an_end_is_refused_and_moves_nothing() -> None:
    envs = vector_env(AutoresetMode.DISABLED)
    envs.reset(seed=0)
    envs.step(np.array([20, EOS, 22]))
    with pytest.raises(ResetNeeded, match=r"environments \[1\] have ended"):
        envs.step(np.array([30, 31, 32]))
    assert envs.episodes.completion_lengths[envs.episodes.running].tolist() == [1, 1]


@pytest.mark.parametrize("mode", MODES)
def test_gymnasiums_statistics_are_right_in_every_mode(mode: AutoresetMode) -> None:
    envs = RecordEpisodeStatistics(vector_env(mode, 2, max_new_tokens=20, problems=PROBLEMS[:1]))
    envs.reset(seed=0)
    right, place = [*ids_of(RIGHT), EOS], 0
    seen: list[list[tuple[float, int]]] = [[], []]
    over = np.zeros(2, dtype=bool)
    for _ in range(42):
        resets = mode == AutoresetMode.NEXT_STEP and over[0]
        _, _, terminations, truncations, infos = envs.step(np.array([right[place], 30]))
        place = place if resets else (place + 1) % len(right)
        over = terminations | truncations
        for slot in np.flatnonzero(over).tolist():
            assert infos["_episode"][slot]
            seen[slot].append((infos["episode"]["r"][slot], infos["episode"]["l"][slot]))
        if mode == AutoresetMode.DISABLED and over.any():
            envs.reset(options={"reset_mask": over})
    assert seen == [[(1.0, 17), (1.0, 17)], [(0.0, 20), (0.0, 20)]]
    assert sorted(envs.length_queue) == [17, 17, 20, 20]


def test_gymnasiums_wrappers_can_be_applied() -> None:
    envs = DtypeObservation(TransformReward(vector_env(AutoresetMode.NEXT_STEP), lambda x: 2 * x - 1), np.float64)
    observations, _ = envs.reset(seed=0)
    actions = random_actions(3)
    for _ in range(12):
        assert observations.dtype == np.float64
        observations, rewards, *_ = envs.step(next(actions))
        assert set(rewards.tolist()) <= {-1, 1}


@pytest.mark.parametrize("mode", MODES)
def test_a_closed_environment_refuses_and_closes_twice(mode: AutoresetMode) -> None:
    envs, single = vector_env(mode), TextGenEnv(**settings())
    envs.reset(seed=0)
    single.reset(seed=0)
    for env in (envs, single):
        env.close()
        env.close()
        with pytest.raises(ClosedEnvironmentError, match="the environment is closed; make a new one"):
            env.step(np.zeros(3, dtype=np.int64))  # type: ignore[arg-type]
        with pytest.raises(ClosedEnvironmentError, match="the environment is closed"):
            env.reset()
    assert envs.episodes.engine.cache is None


def test_the_text_so_far_is_rendered_and_observed_beside_the_hidden_state() -> None:
    shared = {"observation_mode": "hidden+text", "problems": PROBLEMS[:1], "render_mode": "ansi"}
    envs = vector_env(AutoresetMode.SAME_STEP, 2, **shared)
    plain = vector_env(AutoresetMode.SAME_STEP, 2, problems=PROBLEMS[:1])
    observations, _ = envs.reset(seed=0)
    expected, _ = plain.reset(seed=0)
    assert isinstance(observations, dict)
    assert envs.observation_space.contains(observations)
    np.testing.assert_array_equal(observations["hidden"], expected)
    assert observations["text"] == ("3 + 4 = ?\n", "3 + 4 = ?\n")
    letter, other = ids_of("aé")[:2]
    observations, *_ = envs.step(np.array([letter, other]))
    assert envs.render() == observations["text"] == ("3 + 4 = ?\na", "3 + 4 = ?\n\ufffd")  # type: ignore[index]
    assert envs.observation_space.contains(observations)
    observations, *_, infos = envs.step(np.array([EOS, ids_of("é")[1]]))
    assert infos["final_obs"][0]["text"] == "3 + 4 = ?\na<|endoftext|>"
    assert observations["text"] == ("3 + 4 = ?\n", "3 + 4 = ?\né")  # type: ignore[index]


def test_a_problem_is_named_by_id_or_index_and_an_unknown_one_harms_no_episode() -> None:
    env = TextGenEnv(**settings(action_space="tokens"))
    _, info = env.reset(options={"problem": PROBLEMS[2].id})
    assert info["question"] == PROBLEMS[2].question == env.reset(options={"problem": 2})[1]["question"]
    with pytest.raises(ValueError, match="problem 'no such id' is unknown; there are 4"):
        env.reset(options={"problem": "no such id"})
    assert env.step(np.int64(20))[-1] == {"token": 20}
