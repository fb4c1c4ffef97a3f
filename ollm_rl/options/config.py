"""Settings of the option plug-in. Imports nothing heavy, so that ``ollm-rl --help`` answers at once."""

from dataclasses import dataclass
from typing import Literal

from ollm_rl.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class OptionConfig:
    """Shape of the option plug-in and of its loss (OLLM, Sec. 2.2-2.3)."""

    num_options: int = 10
    """Number of options K; at least 2. The paper uses 10."""
    width: int | None = None
    """Hidden width of encoder, decoder and policy; None takes the largest that keeps the plug-in within 2 % of the
    backbone's parameters."""
    identity_option: bool = False
    """Option 0 adds no bias: the backbone's own prediction stays within reach."""
    estimator: Literal["exact", "gumbel"] = "exact"
    """Expectation over options: exact sums all K, gumbel samples one a position with a straight-through gradient."""
    gumbel_temperature: float = 1.0
    """Temperature of the straight-through gradient (gumbel)."""
    prior: Literal["uniform", "policy"] = "uniform"
    """What the KL term holds the encoder to: the uniform distribution (the paper), or the policy, which makes the
    policy's mixture of the options a calibrated language model."""
    policy_objective: Literal["imitation", "marginal"] | None = None
    """The policy learns from the encoder's choice (imitation, eq. 6 of the paper), or from the likelihood of the
    mixture (marginal, needs the exact estimator). None: marginal where the estimator is exact and the prior uniform."""
    kl_target: float | None = 0.2
    """KL(q || prior) in nats that the adaptive weight holds; the paper uses 0.2. None keeps kl_weight_init. With
    prior=policy the weight is 1 at most, the evidence lower bound, so the KL may stay above its target."""
    kl_weight_init: float = 0.1
    """Weight of the KL term at the first step; starting at 1 collapses the options."""

    @property
    def policy_by_likelihood(self) -> bool:
        """Whether the policy learns from the likelihood of the mixture."""
        if self.policy_objective is None:
            # With prior=policy imitation makes the sum of all losses the evidence lower bound.
            return self.estimator == "exact" and self.prior == "uniform"
        return self.policy_objective == "marginal"

    def __post_init__(self) -> None:
        if self.num_options < 2:
            raise UsageError(f"num_options={self.num_options} leaves nothing to choose; give at least 2")
        if self.width is not None and self.width < 1:
            raise UsageError(f"width={self.width} is no layer width; give a positive number or none")
        if self.kl_target is not None and not self.kl_target > 0:
            raise UsageError(f"kl_target={self.kl_target} must be positive, in nats; the paper uses 0.2")
        if not self.kl_weight_init > 0:
            raise UsageError(f"kl_weight_init={self.kl_weight_init} must be positive; 0.1 is a good start")
        if not self.gumbel_temperature > 0:
            raise UsageError(f"gumbel_temperature={self.gumbel_temperature} must be positive; 1 is usual")
        if self.estimator == "gumbel" and self.policy_objective == "marginal":
            raise UsageError(
                "policy_objective='marginal' needs the loss of every option, and estimator='gumbel' computes one; "
                "use estimator='exact' or policy_objective='imitation'"
            )
