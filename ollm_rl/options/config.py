"""Settings of the option plug-in. The imports are light, so that ``ollm-rl --help`` is fast."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from ollm_rl.errors import UsageError
from ollm_rl.settings import Nats, Settings, Temperature, Width


@dataclass(frozen=True, kw_only=True)
class OptionConfig(Settings):
    """Architecture and loss of the option plug-in.

    OLLM, Sec. 2.2-2.3.
    """

    num_options: Annotated[int, Interval(ge=1, le=10**4)] = 10
    """Number of options K; the paper uses 10. With 1, a control, a policy has no choice."""
    width: Width | None = None
    """Hidden width of encoder, decoder and policy. If left out: the largest with which the plug-in has at most 2 % of
    the backbone's parameters."""
    identity_option: bool = False
    """Option 0 adds no bias, so it is the backbone's own prediction."""
    estimator: Literal["exact", "gumbel"] = "exact"
    """Expectation over options: exact sums all K, gumbel samples one per position with a straight-through gradient."""
    gumbel_temperature: Temperature = 1.0
    """Temperature of the straight-through gradient (gumbel)."""
    prior: Literal["uniform", "policy"] = "uniform"
    """Prior of the KL term: the uniform distribution (the paper), or the policy, which makes the policy's mixture of
    the options a calibrated language model."""
    policy_objective: Literal["imitation", "marginal"] | None = None
    """The policy learns from the encoder's choice (imitation, eq. 6 of the paper), or from the likelihood of the
    mixture (marginal, needs the exact estimator). If left out: marginal if the estimator is exact and the prior
    uniform, else imitation."""
    kl_target: Nats | None = 0.2
    """Target of the adaptive weight for KL(q || prior), in nats; the paper uses 0.2. null keeps kl_weight_init. With
    prior=policy the weight is at most 1, the evidence lower bound, so the KL may stay above its target."""
    kl_weight_init: Annotated[float, Interval(gt=0, le=1000)] = 0.1
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
        if self.identity_option and self.num_options == 1:
            raise UsageError("identity_option leaves none of num_options=1 to train; raise num_options")
        if self.estimator == "gumbel" and self.policy_objective == "marginal":
            raise UsageError(
                "policy_objective='marginal' needs the loss of every option, and estimator='gumbel' computes one; "
                "use estimator='exact' or policy_objective='imitation'"
            )
