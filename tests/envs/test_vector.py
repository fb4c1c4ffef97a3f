"""Many environments on one engine: batched spaces, copies like single ones, episodes that begin again."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics

from ollm_rl.envs.text_gen import TextGenEnv
from ollm_rl.envs.vector import TextGenVectorEnv
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.envs.test_text_gen import ID, OPTIONS, PROBLEMS, RIGHT, ids_of, random_actions, settings
from tests.tiny_models import (
    EOS,
    HIDDEN,
    VOCAB,
)


def test_vector_spaces_are_batched() -> None:
    envs = gymnasium.make_vec(ID, num_envs=3, **settings())
    assert isinstance(envs, TextGenVectorEnv)
    assert envs.num_envs == 3
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert envs.single_action_space == Discrete(OPTIONS)
    assert envs.action_space == MultiDiscrete([OPTIONS] * 3)
    assert envs.observation_space == Box(-np.inf, np.inf, (3, HIDDEN), np.float32)
    observations, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(observations)
    observations, *_ = envs.step(envs.action_space.sample())
    assert envs.observation_space.contains(observations)
    envs.close()


def test_every_copy_equals_a_single_environment_with_the_same_problem_and_actions() -> None:
    shared = settings(action_space="tokens", max_new_tokens=8)
    envs = gymnasium.make_vec(ID, num_envs=3, **shared)
    singles = [TextGenEnv(**shared) for _ in range(3)]
    names = [each.id for each in PROBLEMS]
    ended, begun = np.ones(3, dtype=bool), set()
    observations, infos = envs.reset(seed=3)
    rewards, terminations, truncations = np.zeros(3), np.zeros(3, dtype=bool), np.zeros(3, dtype=bool)
    actions = random_actions(3)
    taken = np.zeros(3, dtype=np.int64)
    ends = [0, 0]
    for _ in range(40):
        for slot, single in enumerate(singles):
            if ended[slot]:
                assert infos["_problem"][slot]
                begun.add(infos["problem"][slot])
                expected, facts = single.reset(options={"problem": names.index(infos["problem"][slot])})
                assert (rewards[slot], terminations[slot], truncations[slot]) == (0, False, False)
            else:
                expected, *results, facts = single.step(taken[slot])
                assert [rewards[slot], terminations[slot], truncations[slot]] == results
            assert {key: infos[key][slot] for key in infos if key[0] != "_" and infos[f"_{key}"][slot]} == facts
            np.testing.assert_allclose(observations[slot], expected, rtol=1e-4, atol=1e-5)
        ended = terminations | truncations
        ends[0] += terminations.sum()
        ends[1] += truncations.sum()
        taken = next(actions)
        observations, rewards, terminations, truncations, infos = envs.step(taken)
    assert min(ends) > 1 and begun == set(names)


def test_the_step_after_the_end_ignores_the_action_and_gives_no_reward() -> None:
    envs = TextGenVectorEnv(2, **settings(action_space="tokens", problems=PROBLEMS[:1], max_new_tokens=30))
    first, _ = envs.reset(seed=0)
    for token in ids_of(RIGHT):
        envs.step(np.array([token, 30]))
    _, rewards, terminations, truncations, infos = envs.step(np.array([EOS, 30]))
    assert rewards.tolist() == [1, 0]
    assert terminations.tolist() == [True, False] and truncations.tolist() == [False, False]
    assert infos["completion"][0] == RIGHT and infos["_completion"].tolist() == [True, False]

    observations, rewards, terminations, truncations, infos = envs.step(np.array([VOCAB + 1000, 30]))
    assert rewards.tolist() == [0, 0]
    assert not (terminations | truncations).any()
    assert infos["_problem"].tolist() == [True, False] and infos["_token"].tolist() == [False, True]
    np.testing.assert_allclose(observations[0], first[0], rtol=1e-4, atol=1e-5)
    # The neighbour continued all the time: it has 18 of its 30 tokens.
    for _ in range(11):
        *_, truncations, infos = envs.step(np.array([25, 30]))
        assert infos["token"].tolist() == [25, 30] and not truncations.any()
    *_, truncations, infos = envs.step(np.array([25, 30]))
    assert truncations.tolist() == [False, True]


def test_environments_that_all_end_at_once_all_begin_again() -> None:
    envs = TextGenVectorEnv(2, **settings(problems=PROBLEMS[:1], max_new_tokens=1))
    first, _ = envs.reset(seed=0)
    for _ in range(3):
        *_, truncations, _ = envs.step(np.zeros(2, dtype=np.int64))
        assert truncations.all()
        observations, rewards, terminations, truncations, _ = envs.step(np.zeros(2, dtype=np.int64))
        assert not (terminations | truncations).any() and not rewards.any()
        np.testing.assert_allclose(observations, first, rtol=1e-5, atol=1e-5)


def test_equal_seeds_give_equal_vector_episodes() -> None:
    def run(seed: int) -> list[Any]:
        envs = TextGenVectorEnv(3, **settings(action_space="tokens", max_new_tokens=4))
        observations, infos = envs.reset(seed=seed)
        actions = random_actions(3)
        record = [observations.tolist(), infos["problem"].tolist()]
        for _ in range(12):
            observations, rewards, terminations, truncations, _ = envs.step(next(actions))
            record += [each.tolist() for each in (observations, rewards, terminations, truncations)]
        return record

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_an_action_out_of_range_in_one_environment_moves_none() -> None:
    envs, undisturbed = (TextGenVectorEnv(3, **settings()) for _ in range(2))
    for each in (envs, undisturbed):
        each.reset(seed=0)
    with pytest.raises(ValueError, match=f"action {OPTIONS} is out of range; options go from 0 to {OPTIONS - 1}"):
        envs.step(np.array([0, OPTIONS, 1]))
    found, expected = envs.step(np.array([0, 2, 1])), undisturbed.step(np.array([0, 2, 1]))
    for one, other in zip(found[:4], expected[:4], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_wrong_number_of_actions_is_refused() -> None:
    envs = TextGenVectorEnv(3, **settings())
    envs.reset(seed=0)
    for count in (1, 2, 4):
        with pytest.raises(ValueError, match="give 3, one per slot"):
            envs.step(np.zeros(count, dtype=np.int64))


def test_gymnasiums_statistics_count_returns_and_lengths() -> None:
    env = RecordEpisodeStatistics(gymnasium.make(ID, **settings(action_space="tokens", max_new_tokens=20)))
    env.reset(options={"problem": 0})
    for token in [*ids_of(RIGHT), EOS]:
        *_, info = env.step(token)
    assert (info["episode"]["r"], info["episode"]["l"]) == (1.0, len(RIGHT) + 1)

    plain = TextGenVectorEnv(2, **settings(action_space="tokens", max_new_tokens=20, problems=PROBLEMS[:1]))
    envs = RecordVectorStatistics(plain)
    envs.reset(seed=0)
    for _ in range(2):
        for token in [*ids_of(RIGHT), EOS]:
            *_, infos = envs.step(np.array([token, EOS]))
        assert infos["_episode"][0]
        assert (infos["episode"]["r"][0], infos["episode"]["l"][0]) == (1.0, len(RIGHT) + 1)
        # The neighbour ends after every token: 9 episodes in 17 steps. The steps between belong to no episode.
        assert envs.length_queue[0] == 1 and envs.episode_count in (10, 20)
        envs.step(np.array([30, 30]))


def test_single_environments_of_a_folder_share_one_backbone(model_folder: Path) -> None:
    named = settings(model=str(model_folder), tokenizer=None, max_new_tokens=2)
    envs = gymnasium.make_vec(ID, num_envs=3, vectorization_mode="sync", **named)
    assert isinstance(envs, SyncVectorEnv)
    models = [env.get_wrapper_attr("episodes").model for env in envs.envs]
    assert models[0] is models[1] is models[2]
    envs.reset(seed=0)
    observations, *_ = envs.step(np.zeros(3, dtype=np.int64))
    assert envs.observation_space.contains(observations)
    OptionModel.from_backbone(models[0].backbone, OptionConfig(num_options=2, width=8)).save_pretrained(model_folder)
    assert TextGenEnv(**named).action_space == Discrete(2)  # what was trained there since is another model
