"""How episodes are generated and rewarded."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Interval

from ollm_rl.errors import UsageError
from ollm_rl.settings import Count, Settings, Temperature, Weight


@dataclass(frozen=True, kw_only=True)
class RewardConfig(Settings):
    """Weights of the reward's terms.

    `ollm_rl.envs.rewards` defines the terms; with correctness only, no other term is computed.
    """

    correctness: Weight | None = None
    """Weight of correctness, which is 1 for a correct answer. If left out: 1, or 0 with functions of one's own."""
    format: Weight = 0.0
    """Weight of the format, which is 1 for a stated answer: boxed, after ####, or "the answer is"."""
    length: Weight = 0.0
    """Weight of the length, which falls from 0 for an empty completion to -1 for one at the token limit."""
    language: Weight = 0.0
    """Weight of the language, which is 1 for a completion in the language of its question."""
    repetition: Weight = 0.0
    """Weight of the repetition, which is minus the share of repeated sequences of four words."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correctness is not None and not any(vars(self).values()):
            raise UsageError(
                "all weights of rewards are 0, so there is nothing to learn; give correctness=1, say, or leave it out "
                "with functions of your own (reward)"
            )

    def weights(self) -> dict[str, float]:
        """The weights by term."""
        return {name: weight or 0.0 for name, weight in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(Settings):
    """Rollouts and their rewards."""

    episodes: Count = 256
    """Episodes per iteration."""
    group_size: Count = 8
    """Episodes per prompt; must divide episodes."""
    max_new_tokens: Count = 96
    """Token limit per completion."""
    num_slots: Count = 256
    """Episodes decoded in parallel."""
    compiled: bool = False
    """Compile decoding with torch.compile: takes half a minute at the start (minutes if the model's layers differ), and
    speeds up rollouts on CUDA."""
    temperature: Temperature = 1.0
    """Sampling temperature. The policy that is trained is the one at this temperature."""
    reward: list[str] = field(default_factory=list)
    """Functions of your own: FILE.py:FUNCTION, or FILE.py:FUNCTION=WEIGHT. The file is run. As in TRL, a function takes
    prompts, completions and the problems' columns, and returns a number for each. In Python also names of functions."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """Weights of the reward's terms."""
    failure_reward: Annotated[float, Interval(ge=-1, le=1)] = 0.0
    """Correctness of a completion whose check failed or timed out, and the value of a function of your own that raised.
    These are counted as verifier_failures and reward_failures."""
