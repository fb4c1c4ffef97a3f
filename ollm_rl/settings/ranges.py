"""Types of settings with a range. An upper bound refuses what can only be a slip, before it costs memory or time."""

from typing import Annotated

from annotated_types import Interval

Count = Annotated[int, Interval(ge=1, le=10**9)]
CountOrZero = Annotated[int, Interval(ge=0, le=10**9)]
Width = Annotated[int, Interval(ge=1, le=2**16)]  # of a layer
Positive = Annotated[float, Interval(gt=0, le=1e30)]  # Adam multiplies a rate by ten at first, within float32
Share = Annotated[float, Interval(ge=0, le=1)]
Weight = Annotated[float, Interval(ge=-1000, le=1000)]  # of a term of a reward, and a reward
Coefficient = Annotated[float, Interval(ge=0, le=1000)]  # of a term of a loss
Nats = Annotated[float, Interval(gt=0, le=100)]  # of entropy or KL
Temperature = Annotated[float, Interval(gt=0.001, le=100)]
Seed = Annotated[int, Interval(ge=0, lt=2**32)]
