"""Settings of the option plug-in. Imports nothing heavy, so that ``ollm-rl --help`` answers at once."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OptionConfig:
    """Shape of the option plug-in and of its loss (OLLM, Sec. 2.2-2.3)."""

    num_options: int = 10
    """Number of options K; at least 2. The paper uses 10."""
    width: int | None = None
    """Hidden width of encoder, decoder and policy; None takes the largest that keeps the plug-in within 2 % of the
    backbone's parameters."""
    kl_target: float = 0.2
    """KL(q || uniform) in nats that the adaptive weight holds; the paper uses 0.2."""
    kl_weight_init: float = 0.1
    """Weight of the KL term at the first step; starting at 1 collapses the options."""

    def __post_init__(self) -> None:
        if self.num_options < 2:
            raise ValueError(f"num_options={self.num_options} leaves nothing to choose; give at least 2")
        if self.width is not None and self.width < 1:
            raise ValueError(f"width={self.width} is no layer width; give a positive number or none")
        if not self.kl_target > 0:
            raise ValueError(f"kl_target={self.kl_target} must be positive, in nats; the paper uses 0.2")
        if not self.kl_weight_init > 0:
            raise ValueError(f"kl_weight_init={self.kl_weight_init} must be positive; 0.1 is a good start")
