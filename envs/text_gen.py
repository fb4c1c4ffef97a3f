"""One episode of text generation as a ``gymnasium.Env``."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from transformers import PreTrainedTokenizerBase

from ollm_rl.envs.episodes import ActionSpace, Episodes, Observation, ObservationMode, row
from ollm_rl.envs.rewards import CORRECTNESS_ALONE
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.sources import Problem


class TextGenEnv(gymnasium.Env[Observation, np.int64]):
    """Write a worked solution token by token; the reward says whether its final answer is right.

    ## Action Space
    ``Discrete(K)``: the option whose most probable token comes next. With ``action_space="tokens"``: ``Discrete(V)``,
    the token itself.

    ## Observation Space
    ``Box(-inf, inf, (H,), float32)``: h_t, the backbone's last hidden state after its final norm. After the last
    step of an episode it is h_t at the last token. With ``observation_mode="hidden+text"``: ``Dict(hidden=Box(H,),
    text=Text)``, with prompt and completion so far; characters beyond Unicode's first plane are U+FFFD there.

    ## Rewards
    0 until the end, then 1 if the final answer is right, else 0. ``reward_weights`` weighs this and other terms of
    `ollm_rl.envs.rewards` into a sum.

    ## Starting State
    The prompt of a problem that is drawn uniformly, or the one that ``reset(options={"problem": ...})`` names by its
    id or index.

    ## Episode End
    Terminated by the end-of-text token, truncated at ``max_new_tokens``.

    ## Information
    ``reset`` gives ``problem`` (its id), ``question`` and ``answer``; ``step`` gives ``token``, and at the end
    ``completion``, ``verdict`` (the status of `ollm_rl.answers.pool.Verdict`: a checker that broke shows here),
    ``correctness`` and every other reward term with a weight, unweighted.

    ## Arguments
    ``model`` (an ``OptionModel`` or the folder of one), ``problems`` (a list, or a source such as ``"arith"``),
    ``action_space``, ``max_new_tokens``, ``tokenizer`` (found by the backbone's name where left out),
    ``observation_mode``, ``render_mode`` (``"ansi"``: prompt and completion so far), ``reward_weights`` (by term;
    correctness alone where left out).
    """

    metadata = {"render_modes": ["ansi"]}

    def __init__(
        self,
        model: OptionModel | str,
        problems: Sequence[Problem] | str = "arith",
        *,
        action_space: ActionSpace = "options",
        max_new_tokens: int = 128,
        tokenizer: PreTrainedTokenizerBase | None = None,
        observation_mode: ObservationMode = "hidden",
        render_mode: str | None = None,
        reward_weights: Mapping[str, float] = CORRECTNESS_ALONE,
    ) -> None:
        self.render_mode = render_mode
        self.episodes = Episodes(
            model,
            1,
            problems,
            action_space=action_space,
            max_new_tokens=max_new_tokens,
            tokenizer=tokenizer,
            observation_mode=observation_mode,
            reward_weights=reward_weights,
        )
        self.observation_space, self.action_space = self.episodes.spaces()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; ``options={"problem": ...}`` chooses its problem by id or index.

        Raises:
            ValueError: If the problem is unknown; the running episode goes on unharmed.
            gymnasium.error.ClosedEnvironmentError: After ``close``.
        """
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(len(self.episodes.problems)))
        index = self.episodes.find((options or {}).get("problem", drawn))
        (info,) = self.episodes.start([0], [index])
        return row(self.episodes.observation(), 0), dict(info)

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append one token.

        Raises:
            ValueError: If the action is out of range; the episode has not moved then.
            gymnasium.error.ResetNeeded: If no episode runs.
            gymnasium.error.ClosedEnvironmentError: After ``close``.
        """
        self.episodes.check_open()
        if not self.episodes.running[0]:
            raise gymnasium.error.ResetNeeded("no episode runs; call reset() first")
        moved = self.episodes.advance(np.array([action]))
        ends = bool(moved.terminations[0]), bool(moved.truncations[0])
        info = moved.ended.get(0, {"token": int(moved.tokens[0])})
        return row(self.episodes.observation(), 0), float(moved.rewards[0]), *ends, info

    def render(self) -> str | None:  # type: ignore[override]
        """Prompt and completion so far as the model reads them, with ``render_mode="ansi"``."""
        return self.episodes.text(0) if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Give the memory of the engine back."""
        self.episodes.close()
