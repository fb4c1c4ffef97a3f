"""One episode of text generation as a ``gymnasium.Env``."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from transformers import PreTrainedTokenizerBase

from ollm_rl.envs.episodes import ActionSpace, Episodes
from ollm_rl.envs.rewards import CORRECTNESS_ALONE
from ollm_rl.model import OptionModel
from ollm_rl.problems import Problem


class TextGenEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Write a worked solution token by token; the reward says whether its final answer is right.

    ## Action Space
    ``Discrete(K)``: the option whose most probable token comes next. With ``action_space="tokens"``: ``Discrete(V)``,
    the token itself.

    ## Observation Space
    ``Box(-inf, inf, (H,), float32)``: h_t, the backbone's last hidden state after its final norm. After the last
    step of an episode it is h_t at the last token.

    ## Rewards
    0 until the end, then 1 if the final answer is right, else 0. ``reward_weights`` weighs this and other terms of
    `ollm_rl.envs.rewards` into a sum.

    ## Starting State
    The prompt of a problem that is drawn uniformly, or the one that ``reset(options={"problem": index})`` names.

    ## Episode End
    Terminated by the end-of-text token, truncated at ``max_new_tokens``.

    ## Information
    ``reset`` gives ``problem`` (its id), ``question`` and ``answer``; ``step`` gives ``token``, and at the end
    ``completion``, ``verdict`` (the status of `ollm_rl.verify.Verdict`: a checker that broke shows here),
    ``correctness`` and every other reward term with a weight, unweighted.

    ## Arguments
    ``model`` (an ``OptionModel`` or the folder of one), ``problems`` (a list, or a source such as ``"arith"``),
    ``action_space``, ``max_new_tokens``, ``tokenizer`` (found by the backbone's name where left out), ``render_mode``,
    ``reward_weights`` (by term; correctness alone where left out).
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
            reward_weights=reward_weights,
        )
        self.observation_space, self.action_space = self.episodes.spaces()
        self._tokens = list[int]()  # of prompt and completion

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; ``options={"problem": index}`` chooses its problem."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(len(self.episodes.problems)))
        index = (options or {}).get("problem", drawn)
        (info,) = self.episodes.start([0], [index])
        self._tokens = list(self.episodes.prompts[index])
        return self.episodes.observation()[0], dict(info)

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Append one token.

        Raises:
            ValueError: If the action is out of range.
            gymnasium.error.ResetNeeded: If no episode runs.
        """
        if self.episodes.running[0] is None:
            raise gymnasium.error.ResetNeeded("no episode runs; call reset() first")
        moved = self.episodes.advance(np.array([action]))[0]
        self._tokens.append(int(moved.info["token"]))
        return self.episodes.observation()[0], moved.reward, moved.terminated, moved.truncated, dict(moved.info)

    def render(self) -> str | None:  # type: ignore[override]
        """Prompt and completion so far as the model reads them, with ``render_mode="ansi"``."""
        # Decoded as a whole: one token may be a part of a character, or lose the space before it.
        return self.episodes.tokenizer.decode(self._tokens) if self.render_mode == "ansi" else None
