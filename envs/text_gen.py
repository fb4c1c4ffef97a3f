"""One episode of text generation as a ``gymnasium.Env``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from transformers import PreTrainedTokenizerBase

from ollm_rl.envs.episodes import (
    ActionSpace,
    Episodes,
    Observation,
    ObservationMode,
    check_render_mode,
    check_reset_options,
    row,
)
from ollm_rl.envs.option_info import InfoField
from ollm_rl.envs.own_rewards import Rewards
from ollm_rl.envs.rewards import CORRECTNESS_ONLY
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.problem import Problem


class TextGenEnv(gymnasium.Env[Observation, np.int64]):
    """Write a worked solution token by token; the reward says whether its final answer is right.

    ## Action Space
    ``Discrete(K)``: the option whose most probable token comes next. With ``action_space="tokens"``: ``Discrete(V)``,
    the token itself.

    ## Observation Space
    ``Box(-inf, inf, (H,), float32)``: h_t, the backbone's last hidden state after its final norm. After the last
    step of an episode it is h_t at the last token. With ``observation_mode="hidden+text"``: ``Dict(hidden=Box(H,),
    text=Text)``, where the text is prompt and completion so far. U+FFFD replaces characters beyond Unicode's first
    plane.

    ## Rewards
    0 until the end, then 1 if the final answer is right, else 0. With ``reward_weights`` the reward at the end is a
    weighted sum of this and other terms of `ollm_rl.envs.rewards`. With ``reward``, a function of your own or several
    (`ollm_rl.envs.own_rewards`), it is the sum of these by their weights, and correctness counts only with a weight.

    ## Starting State
    The prompt of a uniformly drawn problem, or of the problem that ``reset(options={"problem": ...})`` names by id or
    index.

    ## Episode End
    Terminated by the end-of-text token, truncated at ``max_new_tokens`` tokens.

    ## Information
    ``reset`` gives ``problem`` (its id), ``question`` and ``answer``. ``step`` gives ``token``, and at the end also
    ``completion``, ``verdict`` (the status of `ollm_rl.answers.pool.Verdict`, which shows whether the checker failed),
    ``correctness`` and every other reward term that has a weight; the values are unweighted. A function that raised
    counts as 0, and ``NAME_failure`` says why.

    With ``info_fields``, both also give, while the episode runs, what the options offer at the observation:
    ``option_tokens`` (K,), ``live`` (whether these differ, so that there is a decision) and ``start_log_probs`` (K,),
    the log-probabilities of the start policy pi(z | h_t) that supervised training left, in nats.

    ## Arguments
    ``model`` (an ``OptionModel``, or the folder of one, which the environments of a process share), ``problems`` (a
    list, or a source such as ``"arith"``), ``action_space``, ``max_new_tokens``, ``tokenizer`` (loaded by the
    backbone's name if left out), ``observation_mode``, ``render_mode`` (``"ansi"``: prompt and completion so far),
    ``reward`` (functions, or ``"FILE.py:FUNCTION"``), ``reward_weights`` (by term; only correctness if both are
    left out), ``info_fields`` (some of ``"option_tokens"``, ``"live"``, ``"start_log_probs"``).
    """

    metadata = {"render_modes": ["ansi"]}

    def __init__(
        self,
        model: OptionModel | str | Path,
        problems: Sequence[Problem] | str = "arith",
        *,
        action_space: ActionSpace = "options",
        max_new_tokens: int = 128,
        tokenizer: PreTrainedTokenizerBase | None = None,
        observation_mode: ObservationMode = "hidden",
        render_mode: str | None = None,
        reward: Rewards = None,
        reward_weights: Mapping[str, float] = CORRECTNESS_ONLY,
        info_fields: Sequence[InfoField] = (),
    ) -> None:
        check_render_mode(render_mode)
        self.render_mode = render_mode
        self.episodes = Episodes(
            model,
            1,
            problems,
            action_space=action_space,
            max_new_tokens=max_new_tokens,
            tokenizer=tokenizer,
            observation_mode=observation_mode,
            reward=reward,
            reward_weights=reward_weights,
            info_fields=info_fields,
        )
        self.observation_space, self.action_space = self.episodes.spaces()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; ``options={"problem": ...}`` chooses its problem by id or index.

        Raises:
            UsageError: If the problem or an option is unknown; the running episode is not affected.
            gymnasium.error.ClosedEnvironmentError: After ``close``.
        """
        check_reset_options(options, "problem", "an id or an index")
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(len(self.episodes.problems)))
        index = self.episodes.find((options or {}).get("problem", drawn))
        (info,) = self.episodes.start([0], [index])
        return row(self.episodes.observation(), 0), {**info, **self._options()}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append one token.

        Raises:
            UsageError: If the action is no whole number or out of range; the episode does not change then.
            gymnasium.error.ResetNeeded: If no episode runs.
            gymnasium.error.ClosedEnvironmentError: After ``close``.
        """
        self.episodes.check_open()
        if not self.episodes.running[0]:
            raise gymnasium.error.ResetNeeded("no episode runs; call reset() first")
        result = self.episodes.advance(np.array([action]))
        ends = bool(result.terminations[0]), bool(result.truncations[0])
        ((reward, info),) = result.outcomes() or [(0.0, {"token": int(result.tokens[0])})]
        return row(self.episodes.observation(), 0), float(reward), *ends, {**info, **self._options()}

    def _options(self) -> dict[str, Any]:
        return {name: values[0] for name, values in self.episodes.options_now().items()}

    def render(self) -> str | None:  # type: ignore[override]
        """Prompt and completion so far as the model reads them, with ``render_mode="ansi"``."""
        return self.episodes.text(0) if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Free the memory of the engine."""
        self.episodes.close()
