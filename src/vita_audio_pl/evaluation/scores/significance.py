"""Confidence intervals by bootstrap over utterances, and paired comparison of two runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

_CHUNK = 1 << 22  # indices drawn at a time, about 32 MB


@dataclass(frozen=True)
class Interval:
    """A rate with its confidence interval; all three are fractions (0.05 is 5 %)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Second run minus first run, over the same utterances."""

    value: float
    low: float
    high: float
    p_value: float


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Confidence interval of `sum(numerators) / sum(denominators)` by resampling utterances with replacement.

    For an error rate these are errors and reference units per utterance (Bisani and Ney, "Bootstrap estimates for
    confidence intervals in ASR performance evaluation", ICASSP 2004); for an accuracy, 0 or 1 and 1. If every
    utterance has the same rate of 0 or 1 the bootstrap would claim certainty; then Wilson's bound is used.

    Raises:
        ValueError: no utterances, or denominators that sum to zero.
    """
    top, bottom = _checked(numerators, denominators)
    value = float(top.sum() / bottom.sum())
    tail = (1 - confidence) / 2
    if np.all(top == 0) or np.all(top == bottom):
        low, high = _wilson(value, len(top), tail)
        return Interval(value, low, high)
    rates = np.concatenate([top[i].sum(1) / bottom[i].sum(1) for i in _resamples(len(top), draws, seed)])
    low, high = np.quantile(rates, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def compare_paired(
    first: Sequence[float],
    second: Sequence[float],
    denominators: Sequence[float],
    second_denominators: Sequence[float] | None = None,
    confidence: float = 0.95,
    draws: int = 10000,
    seed: int = 0,
) -> PairedDifference:
    """Difference of two rates over the same utterances, with a two-sided p-value.

    The p-value is that of the paired randomisation test: under the null hypothesis each utterance's two results could
    be swapped. The interval is that of the paired bootstrap.

    Args:
        denominators: of the first run's rates, and of the second's where it has no `second_denominators`.

    Raises:
        ValueError: lengths differ, no utterances, or denominators that sum to zero.
    """
    one, below_one = _checked(first, denominators)
    two, below_two = _checked(second, denominators if second_denominators is None else second_denominators)
    if len(one) != len(two):
        raise ValueError(f"expected the same utterances, got {len(one)} and {len(two)}")

    def apart(top_one: Any, top_two: Any, bottom_one: Any, bottom_two: Any) -> Any:
        return top_two / bottom_two - top_one / bottom_one

    sums = [part.sum() for part in (one, two, below_one, below_two)]
    observed = apart(*sums)
    rng = np.random.default_rng(seed)
    extreme = 0
    for size in _chunk_sizes(len(one), draws):
        swapped = rng.integers(0, 2, (size, len(one)), dtype=np.int8)
        moved, moved_below = swapped @ (two - one), swapped @ (below_two - below_one)
        drawn = apart(sums[0] + moved, sums[1] - moved, sums[2] + moved_below, sums[3] - moved_below)
        extreme += int((np.abs(drawn) >= abs(observed) - 1e-12).sum())
    parts = (one, two, below_one, below_two)
    drawn = np.concatenate([apart(*(part[i].sum(1) for part in parts)) for i in _resamples(len(one), draws, seed + 1)])
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return PairedDifference(float(observed), float(low), float(high), p_value=(extreme + 1) / (draws + 1))


def _checked(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if top.shape != bottom.shape or top.ndim != 1:
        raise ValueError(f"expected one number per utterance, got shapes {top.shape} and {bottom.shape}")
    if len(top) == 0 or bottom.sum() <= 0:
        raise ValueError("there is nothing to divide by: no utterances, or no reference units")
    return top, bottom


def _chunk_sizes(n: int, draws: int) -> list[int]:
    size = max(1, min(draws, _CHUNK // n))
    return [min(size, draws - start) for start in range(0, draws, size)]


def _resamples(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for size in _chunk_sizes(n, draws):
        yield rng.integers(0, n, (size, n))


def _wilson(value: float, n: int, tail: float) -> tuple[float, float]:
    """Wilson's score interval for a proportion over n utterances."""
    z = NormalDist().inv_cdf(1 - tail)
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
