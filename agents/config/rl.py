"""Settings of reinforcement learning, put together from their sections."""

from dataclasses import dataclass, replace

from ollm_rl.agents.config.learning import (
    POLICIES,
    PolicySettings,
    PPOSettings,
    ReinforceSettings,
    SB3Settings,
    UpdateSettings,
)
from ollm_rl.agents.config.rollout import RolloutSettings
from ollm_rl.agents.config.run import DataSettings, EvaluationSettings, RaySettings, RunSettings
from ollm_rl.errors import UsageError
from ollm_rl.settings import Machine, PromptSettings, ReportSettings, own_fields, refuse_changed

# Settings that each SB3 agent uses, besides those of the run, its problems and its episodes.
SB3_READS = {
    "sb3-dqn": ("learning_rate", "max_grad_norm", "gamma", "n_steps"),
    "sb3-a2c": ("learning_rate", "max_grad_norm", "gamma", "n_steps", "gae_lambda", "vf_coef", "ent_coef"),
}
SB3_READS["sb3-ppo"] = SB3_READS["sb3-recurrent-ppo"] = (*SB3_READS["sb3-a2c"], "minibatches", "epochs", "clip_range")


@dataclass(frozen=True, kw_only=True)
class RLConfig(
    RunSettings,
    DataSettings,
    PromptSettings,
    RolloutSettings,
    PolicySettings,
    UpdateSettings,
    ReinforceSettings,
    PPOSettings,
    EvaluationSettings,
    RaySettings,
    SB3Settings,
    ReportSettings,
    Machine,
):
    """Reinforcement learning from answer correctness, over options or over tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rewards.correctness is None and not self.reward:
            object.__setattr__(self, "rewards", replace(self.rewards, correctness=1.0))  # so that run.json says so
        if self.agent != "ollm-rl":
            self._check_sb3()
            return
        if self.episodes % self.group_size:
            raise UsageError(f"episodes={self.episodes} is no multiple of group_size={self.group_size}; change one")
        refuse_changed(self, ["n_steps"], f"by agent={self.agent}")
        unused = ReinforceSettings if self.algorithm == "ppo" else PPOSettings
        refuse_changed(self, [field.name for field in own_fields(unused)], f"by algorithm={self.algorithm}")
        policies = POLICIES[self.action_space]
        policy = self.policy or policies[0]
        object.__setattr__(self, "policy", policy)  # so that run.json says which
        if policy not in policies:
            raise UsageError(
                f"policy={policy!r} does not act over {self.action_space}; give one of {', '.join(policies)}, or "
                "another action_space"
            )
        used = {"latent": "option_gradient", "lora": "lora_rank"}
        refuse_changed(self, [name for kind, name in used.items() if kind != policy], f"by policy={policy}")
        if self.algorithm == "reinforce" and self.baseline in ("leave-one-out", "group") and self.group_size < 2:
            raise UsageError(
                f"group_size=1 leaves nothing for baseline={self.baseline!r}; give at least 2, or another baseline"
            )
        if self.workers > self.episodes // self.group_size:
            raise UsageError(
                f"workers={self.workers} are more than the {self.episodes // self.group_size} groups of an iteration's "
                "episodes; lower it"
            )
        if self.temperature != 1 and self.option_gradient == "option":
            raise UsageError(
                f"temperature={self.temperature:g} is that of tokens, and option_gradient='option' learns from the "
                "probabilities of options; leave one out"
            )
        if self.warmup_iterations > self.iterations:
            raise UsageError(
                f"warmup_iterations={self.warmup_iterations} is more than iterations={self.iterations}; lower it"
            )
        if self.minibatches > self.episodes:
            raise UsageError(f"minibatches={self.minibatches} is more than episodes={self.episodes}; lower it")

    def _check_sb3(self) -> None:
        if self.action_space != "options":
            raise UsageError(f"agent={self.agent!r} acts over options; leave action_space={self.action_space!r} out")
        ours = (PolicySettings, UpdateSettings, ReinforceSettings, PPOSettings, EvaluationSettings, RaySettings)
        names = [field.name for section in (PromptSettings, *ours) for field in own_fields(section)]
        names += ["algorithm", "keep_checkpoints", "group_size", "temperature", "failure_reward"]
        refuse_changed(self, [name for name in names if name not in SB3_READS[self.agent]], f"by agent={self.agent}")
