"""Settings of the option plug-in. Imports nothing heavy, so that ``ollm-rl --help`` answers at once."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from ollm_rl.errors import UsageError
from ollm_rl.settings import Count, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class OptionConfig(Settings):
    """Shape of the option plug-in and of its loss.

    OLLM, Sec. 2.2-2.3.
    """

    num_options: Annotated[int, Ge(2)] = 10
    """Number of options K; at least 2. The paper uses 10."""
    width: Count | None = None
    """Hidden width of encoder, decoder and policy; None takes the largest that keeps the plug-in within 2 % of the
    backbone's parameters."""
    identity_option: bool = False
    """Option 0 adds no bias: the backbone's own prediction stays within reach."""
    estimator: Literal["exact", "gumbel"] = "exact"
    """Expectation over options: exact sums all K, gumbel samples one a position with a straight-through gradient."""
    gumbel_temperature: Positive = 1.0
    """Temperature of the straight-through gradient (gumbel)."""
    prior: Literal["uniform", "policy"] = "uniform"
    """What the KL term holds the encoder to: the uniform distribution (the paper), or the policy, which makes the
    policy's mixture of the options a calibrated language model."""
    policy_objective: Literal["imitation", "marginal"] | None = None
    """The policy learns from the encoder's choice (imitation, eq. 6 of the paper), or from the likelihood of the
    mixture (marginal, needs the exact estimator). None: marginal where the estimator is exact and the prior uniform."""
    kl_target: Positive | None = 0.2
    """KL(q || prior) in nats that the adaptive weight holds; the paper uses 0.2. None keeps kl_weight_init. With
    prior=policy the weight is 1 at most, the evidence lower bound, so the KL may stay above its target."""
    kl_weight_init: Positive = 0.1
    """Weight of the KL term at the first step; starting at 1 collapses the options."""

    @property
    def policy_by_likelihood(self) -> bool:
        """Whether the policy learns from the likelihood of the mixture."""
        if self.policy_objective is None:
            # With prior=policy imitation makes the sum of all losses the evidence lower bound.
            return self.estimator == "exact" and self.prior == "uniform"
        return self.policy_objective == "marginal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator == "gumbel" and self.policy_objective == "marginal":
            raise UsageError(
                "policy_objective='marginal' needs the loss of every option, and estimator='gumbel' computes one; "
                "use estimator='exact' or policy_objective='imitation'"
            )
