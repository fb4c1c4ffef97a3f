"""A step of many environments: its infos in Gymnasium's arrays, refused actions, and prompts named in advance."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partialmethod
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AutoresetMode, VectorEnv

from ollm_rl.answers.pool import Verdict, VerifierPool
from ollm_rl.envs.episodes import Episodes, Observation
from ollm_rl.envs.vector import TextGenVectorEnv
from tests.envs.test_autoreset import MODES, vector_env
from tests.envs.test_text_gen import OPTIONS, PROBLEMS, ids_of, random_actions
from tests.tiny_models import EOS, VOCAB


def gathered(facts: dict[int, dict[str, Any]], count: int = 3) -> dict[str, Any]:
    """Infos of single environments as Gymnasium's own loop batches them."""
    base: VectorEnv[Any, Any, Any] = VectorEnv()
    base.num_envs = count
    infos: dict[str, Any] = {}
    for slot, info in facts.items():
        infos = base._add_info(infos, info, slot)
    return infos


def assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same keys, dtypes and elements."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_alike(found[key], value)
        else:
            assert found[key].dtype == value.dtype, key
            np.testing.assert_array_equal(found[key], value)


def ended(token: int, completion: str) -> dict[str, Any]:
    return {"token": token, "completion": completion, "verdict": "no_answer", "correctness": 0.0}


def begun(problem: int) -> dict[str, Any]:
    asked = PROBLEMS[problem]
    return {"problem": asked.id, "question": asked.question, "answer": asked.answer}


def test_infos_have_the_dtypes_and_masks_of_gymnasiums_own_loop() -> None:
    letter = 20
    envs = vector_env(AutoresetMode.NEXT_STEP, problems=PROBLEMS[:1])
    envs.reset(seed=0)
    *_, infos = envs.step(np.array([letter, EOS, letter]))
    assert infos["token"].dtype == np.int64 and infos["_token"].dtype == bool
    assert_alike(infos, gathered({0: {"token": letter}, 1: ended(EOS, ""), 2: {"token": letter}}))
    *_, infos = envs.step(np.array([letter, letter, letter + 1]))
    assert_alike(infos, gathered({0: {"token": letter}, 1: begun(0), 2: {"token": letter + 1}}))


def test_in_mode_same_step_the_last_token_is_only_in_the_final_info() -> None:
    envs = vector_env(AutoresetMode.SAME_STEP, problems=PROBLEMS[:1], max_new_tokens=2)
    first, second = ids_of("ab")
    envs.reset(seed=0)
    envs.step(np.array([EOS, first, EOS]))
    *_, infos = envs.step(np.array([first, second, first], dtype=np.uint8))
    assert infos["token"].dtype == np.int64
    assert infos.pop("final_obs")[[0, 2]].tolist() == [None, None]
    assert infos.pop("_final_obs").tolist() == [False, True, False]
    again = {"final_info": ended(second, "ab"), **begun(0)}
    assert_alike(infos, gathered({0: {"token": first}, 1: again, 2: {"token": first}}))
    assert infos["token"].tolist() == [first, 0, first]
    *_, infos = envs.step(np.array([EOS, EOS, EOS]))
    assert "token" not in infos and "_token" not in infos
    assert infos["final_info"]["token"].tolist() == [EOS, EOS, EOS]


@pytest.mark.parametrize(
    ("action_space", "actions", "wrong"),
    [
        ("options", [1, OPTIONS + 3, -1, 0], OPTIONS + 3),
        ("options", [1, 1, 1, -2], -2),
        ("tokens", [20, 21, VOCAB, -1], VOCAB),
    ],
)
def test_the_first_wrong_action_is_named_and_no_environment_moves(
    action_space: str, actions: list[float], wrong: float
) -> None:
    envs = vector_env(AutoresetMode.NEXT_STEP, 4, action_space=action_space)
    before, _ = envs.reset(seed=0)
    lengths, tokens = list(envs.episodes.engine.lengths), envs.episodes.tokens.copy()
    with pytest.raises(ValueError, match=f"^action {wrong} is out of range; {action_space} go from 0 to"):
        envs.step(np.array(actions))
    assert envs.episodes.running.all() and not envs.episodes.completion_lengths.any()
    assert envs.episodes.engine.lengths == lengths
    np.testing.assert_array_equal(envs.episodes.tokens, tokens)
    np.testing.assert_array_equal(envs.episodes.observation(), before)


def test_the_next_prompts_of_the_longest_completions_are_named_first(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = vector_env(AutoresetMode.DISABLED, 4)
    named: list[list[int]] = []
    start = Episodes.start

    def recording(
        self: Episodes, slots: Sequence[int], indices: Sequence[int], upcoming: Sequence[int] = ()
    ) -> list[dict[str, str]]:
        named.append(list(upcoming))
        return start(self, slots, indices, upcoming)

    monkeypatch.setattr(Episodes, "start", recording)
    envs.reset(seed=4)
    # At the third reset environment 1 has written three tokens, 0 two and 3 one.
    for begin in ([0, 2, 3], [2, 3], [2]):
        envs.step(np.full(4, 20))
        envs.reset(options={"reset_mask": np.isin(np.arange(4), begin)})
    streams = [np.random.Generator(np.random.PCG64(seed)) for seed in np.random.SeedSequence(4).spawn(4)]
    draws = [[int(stream.integers(len(PROBLEMS))) for _ in range(4)] for stream in streams]
    assert named == [
        [],
        [draws[1][1]],
        [draws[1][1], draws[0][2]],
        [draws[1][1], draws[0][2], draws[3][3]],
    ]


@pytest.mark.parametrize("mode", MODES)
def test_all_hidden_states_are_fetched_once_a_step_and_stay_the_callers(
    mode: AutoresetMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    fetch, start = Episodes.fetch_observation, Episodes.start

    def counting(self: Episodes, slots: Sequence[int] | None = None) -> Callable[[], Observation]:
        fetched = fetch(self, slots)
        asked.append(("copy", slots))

        def wait() -> Observation:
            asked.append(("wait", slots))
            return fetched()

        return wait

    def starting(self: Episodes, slots: Sequence[int], *args: Any) -> list[dict[str, str]]:
        asked.append(("start", slots))
        return start(self, slots, *args)

    envs = vector_env(mode)
    observations, _ = envs.reset(seed=0)
    monkeypatch.setattr(Episodes, "fetch_observation", counting)
    monkeypatch.setattr(Episodes, "start", starting)
    seen, ends = [(observations, observations.copy())], 0
    for actions, _ in zip(random_actions(3, seed=1), range(20), strict=False):
        asked.clear()
        ended = [] if mode == AutoresetMode.DISABLED else np.flatnonzero(~envs.episodes.running).tolist()
        observations, _, terminations, truncations, _ = envs.step(actions)
        over = terminations | truncations
        ends += over.sum()
        seen.append((observations, observations.copy()))
        expected: list[Any] = [("start", ended)] * bool(ended) + [("copy", None), ("wait", None)]
        if mode == AutoresetMode.SAME_STEP and over.any():
            last = np.flatnonzero(over).tolist()  # the host does not wait for it before the next episodes start
            expected = [("copy", last), ("start", last), ("copy", None), ("wait", last), ("wait", None)]
        assert asked == expected
        if mode == AutoresetMode.DISABLED and over.any():
            envs.reset(options={"reset_mask": over})
    assert ends > 3
    for kept, copy in seen:
        np.testing.assert_array_equal(kept, copy)


def test_the_next_episode_does_not_wait_for_the_check_of_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = vector_env(AutoresetMode.SAME_STEP)
    envs.reset(seed=0)
    check, start = Future[Verdict](), Episodes.start

    def starting(self: Episodes, *args: Any) -> list[dict[str, str]]:
        check.set_result(Verdict(True, "7", "boxed", "ok"))
        return start(self, *args)

    monkeypatch.setattr(VerifierPool, "submit", lambda *_: check)
    monkeypatch.setattr(Future, "result", partialmethod(Future.result, timeout=0.0))  # no check waits for ever here
    monkeypatch.setattr(Episodes, "start", starting)
    _, rewards, terminations, _, infos = envs.step(np.array([20, EOS, 20]))
    assert terminations.tolist() == [False, True, False]
    assert rewards.tolist() == [0.0, 1.0, 0.0] and infos["final_info"]["verdict"][1] == "ok"


def test_an_environment_closed_before_its_first_reset_says_that_it_is_closed() -> None:
    envs: TextGenVectorEnv = vector_env(AutoresetMode.NEXT_STEP)
    envs.close()
    with pytest.raises(ClosedEnvironmentError, match="the environment is closed; make a new one"):
        envs.step(np.zeros(3, dtype=np.int64))
