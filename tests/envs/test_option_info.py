"""What ``info`` tells agents of one's own about the options."""

import gymnasium
import numpy as np
import pytest
import torch

from ollm_rl.envs.text_gen import TextGenEnv
from ollm_rl.errors import UsageError
from tests.envs.test_text_gen import ID, OPTIONS, option_model, settings

FIELDS = ("option_tokens", "live", "start_log_probs")


def test_the_fields_say_what_every_action_writes_where_it_matters_and_what_the_start_policy_prefers() -> None:
    model = option_model()
    env = TextGenEnv(**settings(model=model, info_fields=FIELDS, max_new_tokens=4))
    observation, info = env.reset(seed=0)
    ended = False
    while not ended:
        assert info["option_tokens"].shape == info["start_log_probs"].shape == (OPTIONS,)
        assert info["live"] == (len(set(info["option_tokens"].tolist())) > 1)
        with torch.no_grad():
            expected = model.adapter.policy(torch.tensor(observation)).softmax(-1)
        np.testing.assert_allclose(np.exp(info["start_log_probs"]), expected, rtol=1e-4)
        wanted = info["option_tokens"][3]
        observation, _, terminated, truncated, info = env.step(np.int64(3))
        assert info["token"] == wanted
        ended = terminated or truncated
    assert not set(FIELDS) & set(info)  # nothing is left to decide


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_many_environments_give_them_as_arrays_with_masks(mode: str) -> None:
    envs = gymnasium.make_vec(ID, num_envs=2, **settings(info_fields=FIELDS, max_new_tokens=2), autoreset_mode=mode)
    _, infos = envs.reset(seed=0)
    for _ in range(5):
        assert infos["option_tokens"].shape == (2, OPTIONS) and infos["_live"].all()
        wanted = infos["option_tokens"][:, 1]
        _, _, terminations, truncations, infos = envs.step(np.array([1, 1]))
        ended = terminations | truncations
        found = infos["final_info"]["token"] if ended.any() and mode == "SameStep" else infos["token"]
        assert found.tolist() == wanted.tolist()
        if mode == "NextStep" and ended.all():
            assert "option_tokens" not in infos
            _, _, _, _, infos = envs.step(np.array([0, 0]))  # begins the next episodes
    envs.close()


@pytest.mark.parametrize(("fields", "message"), [("live", "is no list"), (["x"], "info_fields='x' is unknown")])
def test_unknown_fields_are_refused(fields: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TextGenEnv(**settings(info_fields=fields))
