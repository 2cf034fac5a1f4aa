"""Means over seeds, and how sure they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t at 97.5 %, for 1 to 30 degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110,
      2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip
_EQUAL = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval.

    One seed has no interval: `low` and `high` are None. Seeds that agree have one without width, which says nothing
    of chance: their values follow from what they share, or are too coarse to differ.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval, None where there is none or it has no width."""
        if self.low is None or self.high is None or self.low == self.high:
            return None
        return self.low, self.high

    @property
    def significant(self) -> str:
        """Whether the interval leaves zero out: `yes`, `no`, or why there is no telling: `one seed`, `no spread`."""
        if self.interval is None:
            return "one seed" if self.n == 1 else "no spread"
        low, high = self.interval
        return "no" if low <= 0 <= high else "yes"


def over_seeds(values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> Estimate | None:
    """Mean and Student's t interval, seeds as the sample; None where there are no values.

    Args:
        least, most: what the figure can be; an interval ends there.
    """
    n = len(values)
    if n == 0:
        return None
    mean = sum(values) / n
    if n == 1:
        return Estimate(mean, None, None, 1)
    if max(values) - min(values) <= _EQUAL * max(1.0, abs(mean)):
        return Estimate(mean, mean, mean, n)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = (_T[n - 2] if n - 2 < len(_T) else 1.96) * deviation / math.sqrt(n)
    return Estimate(mean, max(mean - half, least), min(mean + half, most), n)
