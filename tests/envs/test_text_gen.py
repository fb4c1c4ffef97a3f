"""The Gymnasium environments: their API, rewards and ends, and each copy against a single environment."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env

import ollm_rl.envs
from ollm_rl.envs.text_gen import TextGenEnv
from ollm_rl.envs.vector import TextGenVectorEnv
from ollm_rl.errors import UsageError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.problem import Problem
from tests.tiny_models import (
    CONTEXT,
    EOS,
    HIDDEN,
    VOCAB,
    full_hidden_states,
    greedy_generate,
    save_backbone,
    tiny_model,
    tiny_tokenizer,
)

ID = "ollm_rl.envs:ollm_rl/TextGen-v0"
RIGHT = "The answer is 7."
OPTIONS = 5


def problem(question: str, answer: str) -> Problem:
    return Problem(id=f"id of {question}", question=question, solution="", answer=answer, language="en")


PROBLEMS = [problem("3 + 4 = ?", "7"), problem("What is 20 - 8?", "12"), problem("2 * 2", "4"), problem("9 / 3?", "3")]


def option_model(seed: int = 0) -> OptionModel:
    """A random plug-in whose options name different tokens."""
    torch.manual_seed(seed)
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=OPTIONS, width=16))
    with torch.no_grad():
        model.adapter.option_embedding.mul_(10)
    return model


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "model": option_model(),
        "problems": PROBLEMS,
        "tokenizer": tiny_tokenizer(),
        "max_new_tokens": 12,
    } | changes


def ids_of(text: str) -> list[int]:
    ids: list[int] = tiny_tokenizer()(text).input_ids
    return ids


def random_actions(count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Tokens for every environment. One in six is the end of text, so that episodes end at different times."""
    generator = np.random.default_rng(seed)
    while True:
        tokens = generator.integers(1, VOCAB, count)
        yield np.where(generator.random(count) < 1 / 6, EOS, tokens)


def write(env: TextGenEnv, tokens: list[int]) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
    """Step through tokens, of which only the last may end the episode or be rewarded; returns the last results."""
    for token in tokens[:-1]:
        _, reward, terminated, truncated, info = env.step(np.int64(token))
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert "correctness" not in info
    return env.step(np.int64(tokens[-1]))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved option model with its backbone and tokenizer."""
    folder = tmp_path_factory.mktemp("saved")
    model = OptionModel.from_backbone(save_backbone(folder / "backbone"), OptionConfig(num_options=OPTIONS, width=16))
    model.save_pretrained(folder / "plug-in")
    return folder / "plug-in"


@pytest.mark.filterwarnings("ignore:.*(is probably too (low|high)|No render fps)")  # h_t has no bounds, text no frames
@pytest.mark.parametrize(("action_space", "count"), [("options", OPTIONS), ("tokens", VOCAB)])
def test_gymnasiums_checker_passes(action_space: str, count: int) -> None:
    env = gymnasium.make(ID, **settings(action_space=action_space), render_mode="ansi").unwrapped
    assert isinstance(env, TextGenEnv)
    assert env.action_space == Discrete(count)
    assert env.observation_space == Box(-np.inf, np.inf, (HIDDEN,), np.float32)
    check_env(env)


def test_importing_the_environments_registers_them() -> None:
    ollm_rl.envs.register_envs()  # a second time does no harm
    env = gymnasium.make("ollm_rl/TextGen-v0", **settings())
    assert isinstance(env.unwrapped, TextGenEnv)


def test_an_environment_is_made_from_the_folder_of_an_option_model(model_folder: Path) -> None:
    env = gymnasium.make(ID, model=str(model_folder), problems=PROBLEMS, max_new_tokens=3)
    observation, info = env.reset(seed=0, options={"problem": 2})
    assert env.observation_space.contains(observation)
    assert info == {"problem": "id of 2 * 2", "question": "2 * 2", "answer": "4"}


def test_the_first_observation_is_the_hidden_state_at_the_end_of_the_prompt() -> None:
    env = TextGenEnv(**settings())
    observation, _ = env.reset(options={"problem": 1})
    expected = full_hidden_states(tiny_model("llama"), ids_of("What is 20 - 8?\n"))[-1]
    assert observation.dtype == np.float32
    np.testing.assert_allclose(observation, expected, rtol=1e-4, atol=1e-4)


def test_equal_seeds_give_equal_episodes_and_other_seeds_others() -> None:
    def run(seed: int) -> list[Any]:
        env = TextGenEnv(**settings(max_new_tokens=4))
        actions = np.random.default_rng(0)
        record: list[Any] = []
        for episode in range(6):
            observation, info = env.reset(seed=seed if episode == 0 else None)
            record += [observation.tolist(), info["problem"]]
            ended = False
            while not ended:
                observation, reward, terminated, truncated, info = env.step(actions.integers(OPTIONS))
                record += [observation.tolist(), reward, info]
                ended = terminated or truncated
        return record

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_a_right_answer_is_rewarded_when_the_text_ends() -> None:
    env = TextGenEnv(**settings(action_space="tokens", max_new_tokens=20))
    env.reset(options={"problem": 0})
    _, reward, terminated, truncated, info = write(env, [*ids_of(RIGHT), EOS])
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info == {"token": EOS, "completion": RIGHT, "verdict": "ok", "correctness": 1.0}


def test_a_wrong_answer_is_not_rewarded() -> None:
    env = TextGenEnv(**settings(action_space="tokens", max_new_tokens=20))
    env.reset(options={"problem": 1})
    _, reward, terminated, truncated, info = write(env, [*ids_of(RIGHT), EOS])
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info["correctness"] == 0.0


def test_the_token_limit_truncates_and_the_text_so_far_is_rewarded() -> None:
    env = TextGenEnv(**settings(action_space="tokens", max_new_tokens=len(RIGHT)))
    env.reset(options={"problem": 0})
    _, reward, terminated, truncated, info = write(env, ids_of(RIGHT))
    assert (reward, terminated, truncated) == (1.0, False, True)
    assert info["completion"] == RIGHT


def test_the_end_of_text_at_the_limit_terminates_and_does_not_truncate() -> None:
    env = TextGenEnv(**settings(action_space="tokens", max_new_tokens=len(RIGHT) + 1))
    env.reset(options={"problem": 0})
    _, reward, terminated, truncated, _ = write(env, [*ids_of(RIGHT), EOS])
    assert (reward, terminated, truncated) == (1.0, True, False)


def test_an_episode_may_be_left_in_the_middle() -> None:
    env = TextGenEnv(**settings(action_space="tokens", max_new_tokens=20))
    env.reset(options={"problem": 1})
    write(env, ids_of("Let"))
    env.reset(options={"problem": 0})
    _, reward, _, _, info = write(env, [*ids_of(RIGHT), EOS])
    assert (reward, info["completion"]) == (1.0, RIGHT)


def test_token_actions_that_follow_the_backbones_argmax_reproduce_generate() -> None:
    backbone = tiny_model("llama")
    prompt = ids_of("What is 20 - 8?\n")
    expected = greedy_generate(backbone, prompt, 30)
    assert EOS not in expected and len(set(expected)) > 10

    env = TextGenEnv(**settings(action_space="tokens", max_new_tokens=30))
    observation, _ = env.reset(options={"problem": 1})
    found = []
    truncated = False
    while not truncated:
        action = backbone.get_output_embeddings()(torch.from_numpy(observation)).argmax()
        observation, _, terminated, truncated, info = env.step(np.int64(action))
        assert not terminated
        found.append(info["token"])
    assert found == expected


def test_an_option_appends_its_own_most_probable_token() -> None:
    model = option_model()
    env = TextGenEnv(**settings(model=model))
    sequence = ids_of("2 * 2\n")
    env.reset(options={"problem": 2})
    offered = set()
    for action in (3, 0, 4, 1, 2, 3):
        hidden = full_hidden_states(model.backbone, sequence)[-1]
        with torch.no_grad():
            logits = model.backbone.get_output_embeddings()(hidden + model.adapter.biases(hidden))
        best = logits.argmax(-1).tolist()
        offered.add(len(set(best)))
        _, _, terminated, _, info = env.step(np.int64(action))
        assert info["token"] == best[action]
        assert not terminated
        sequence.append(best[action])
    assert min(offered) > 1, "options that all name one token would test nothing"


def test_the_rendered_text_is_prompt_and_completion_after_the_end_too() -> None:
    env = TextGenEnv(**settings(action_space="tokens", max_new_tokens=len(RIGHT)), render_mode="ansi")
    env.reset(options={"problem": 0})
    assert env.render() == "3 + 4 = ?\n"
    write(env, ids_of(RIGHT))
    assert env.render() == f"3 + 4 = ?\n{RIGHT}"


def test_a_rendered_character_of_two_tokens_is_whole() -> None:
    text = "café"
    assert len(ids_of(text)) == 5
    env = TextGenEnv(**settings(action_space="tokens"), render_mode="ansi")
    env.reset(options={"problem": 0})
    write(env, ids_of(text))
    assert env.render() == f"3 + 4 = ?\n{text}"


@pytest.mark.parametrize("action_space", ["options", "tokens"])
@pytest.mark.parametrize("action", [-1, VOCAB])
def test_an_action_out_of_range_moves_nothing(action_space: str, action: int) -> None:
    env, undisturbed = (TextGenEnv(**settings(action_space=action_space, max_new_tokens=2)) for _ in range(2))
    for each in (env, undisturbed):
        each.reset(options={"problem": 0})
    with pytest.raises(ValueError, match=f"action {action} is out of range; {action_space} go from 0 to"):
        env.step(np.int64(action))
    for _ in range(2):
        found, expected = env.step(np.int64(1)), undisturbed.step(np.int64(1))
        np.testing.assert_array_equal(found[0], expected[0])
        assert found[1:] == expected[1:]


def test_a_step_before_the_first_reset_or_after_the_end_is_refused() -> None:
    env = TextGenEnv(**settings(max_new_tokens=1))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(0))
    env.reset()
    env.step(np.int64(0))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(0))
    with pytest.raises(gymnasium.error.ResetNeeded):
        TextGenVectorEnv(2, **settings()).step(np.zeros(2, dtype=np.int64))


@pytest.mark.parametrize("index", [-1, 4])
def test_an_unknown_problem_is_refused(index: int) -> None:
    env = TextGenEnv(**settings())
    with pytest.raises(
        ValueError, match=f"problem {index} is unknown; there are 4: give a number from 0 to 3, or an id"
    ):
        env.reset(options={"problem": index})


def test_two_problems_with_one_id_are_refused() -> None:
    with pytest.raises(ValueError, match="problems 0 and 4 both have the id '.*'; change one"):
        TextGenEnv(**settings(problems=[*PROBLEMS, PROBLEMS[0]]))


def test_a_prompt_that_leaves_no_room_in_the_context_is_refused_by_its_problem() -> None:
    fits, long = problem("?" * (CONTEXT - 13), "1"), problem("?" * (CONTEXT - 12), "1")
    TextGenEnv(**settings(problems=[fits]))  # with the line break and 12 new tokens exactly the context
    with pytest.raises(ValueError, match="the prompt of problem 'id of .*' has 53 tokens and leaves no room"):
        TextGenEnv(**settings(problems=[*PROBLEMS, long]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_space": "words"}, "action_space='words' is unknown; give one of options, tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"problems": []}, "problems is empty"),
        ({"problems": "nowhere"}, "problems='nowhere' names no source of problems"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextGenEnv(**settings(**change))


def test_a_missing_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no option plug-in"):
        gymnasium.make(ID, **settings(model=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("action", [1.5, 1.0, True, 1j, "1", None, float("nan")])
def test_an_action_that_is_no_whole_number_is_refused_and_the_episode_goes_on(action: Any) -> None:
    env = TextGenEnv(**settings())
    env.reset(seed=0)
    with pytest.raises(UsageError, match="are not whole numbers; give a number per slot"):
        env.step(action)
    env.step(np.int64(1))


@pytest.mark.parametrize("make", [TextGenEnv, lambda **rest: TextGenVectorEnv(2, **rest)])
def test_unknown_settings_of_an_environment_are_named(make: Any) -> None:
    with pytest.raises(UsageError, match="render_mode='human' is unknown; give 'ansi' or None"):
        make(**settings(render_mode="human"))
    with pytest.raises(UsageError, match="the weight of correctness=nan is not a finite number; give one"):
        make(**settings(reward_weights={"correctness": float("nan")}))
    with pytest.raises(UsageError, match="all weights in .* are 0"):
        make(**settings(reward_weights={"correctness": 0.0}))


def test_an_unknown_reset_option_is_named() -> None:
    with pytest.raises(UsageError, match="reset option 'probelm' is unknown; give problem, an id or an index"):
        TextGenEnv(**settings()).reset(options={"probelm": 1})


def test_the_folder_of_a_model_may_be_a_path(tmp_path: Path) -> None:
    name = save_backbone(tmp_path / "backbone")
    OptionModel.from_backbone(name, OptionConfig(num_options=3, width=8)).save_pretrained(tmp_path / "options")
    env = TextGenEnv(tmp_path / "options", PROBLEMS, max_new_tokens=4)
    assert env.action_space == Discrete(3)
