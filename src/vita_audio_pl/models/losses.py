"""What a training step gives back, and the rows it is made of."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class HeadLosses(NamedTuple):
    """Losses of one step; entry 0 of each vector is the backbone, entry `k + 1` head `k`.

    total: scalar with gradient, divisor and weights included: the global loss is the sum of all ranks' and
    micro-batches' totals. sums: `(1 + K,)` float32, unweighted losses summed over scored labels; counts: `(1 + K,)`
    int64, scored labels; correct: `(1 + K,)` int64, of these predicted right. The vectors are detached.
    """

    total: Tensor
    sums: Tensor
    counts: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Scored:
    """Rows of one predictor that are scored.

    hidden: (rows, hidden), normed; targets: (rows,) int64; weights: (rows,) float32, divisor included; tokens: (rows,)
    int64, the backbone row (and token) each stands at.
    """

    predictor: int
    hidden: Tensor
    targets: Tensor
    weights: Tensor
    tokens: Tensor


def collect(total: Tensor, each: Tensor, correct: Tensor, scored: list[Scored], n_predictors: int) -> HeadLosses:
    """Sums by predictor of the losses and hits of concatenated rows."""
    sums = torch.zeros(n_predictors, dtype=torch.float32, device=each.device)
    hits = torch.zeros(n_predictors, dtype=torch.int64, device=each.device)
    counts = torch.zeros(n_predictors, dtype=torch.int64)
    start = 0
    for part in scored:
        rows = slice(start, start + len(part.targets))
        sums[part.predictor], hits[part.predictor] = each[rows].sum(), correct[rows].sum()
        counts[part.predictor] = start = rows.stop
        counts[part.predictor] -= rows.start
    return HeadLosses(total, sums, counts.to(each.device), hits)
