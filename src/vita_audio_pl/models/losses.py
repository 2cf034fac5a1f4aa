"""What a training step gives back, and the rows it is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vita_audio_pl.models.linear_cross_entropy import RowLosses

RowLoss = Callable[[Tensor, Tensor, Tensor, Tensor], RowLosses]
"""`(hidden, weight, targets, row_weights) -> RowLosses`, as `linear_cross_entropy`."""


class HeadLosses(NamedTuple):
    """Losses of one step; entry 0 of each vector is the backbone, entry `k + 1` head `k`.

    total: scalar with gradient, divisor and weights included: the global loss is the sum of all ranks' and
    micro-batches' totals. sums: `(1 + K,)` float32, unweighted losses summed over scored labels; counts: `(1 + K,)`
    int64, scored labels; correct: `(1 + K,)` int64, of these predicted right; served: `(1 + K,)` int64, of the scored
    those that the predictor writes under the decoding pattern; served_correct: of these predicted right. The vectors are
    detached.
    """

    total: Tensor
    sums: Tensor
    counts: Tensor
    correct: Tensor
    served: Tensor
    served_correct: Tensor

    def with_(self, other: "HeadLosses") -> "HeadLosses":
        """Both together."""
        return HeadLosses(*(mine + its for mine, its in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Scored:
    """Rows of one predictor that are scored.

    predictor: 0 the backbone, k + 1 head k; hidden: (rows, hidden), normed; targets: (rows,) int64; weights: (rows,)
    float32, divisor included; tokens: (rows,) int64 on the CPU, ascending, the token each row stands at; served: (rows,)
    bool, whether the predictor writes the target under the decoding pattern.
    """

    predictor: int
    hidden: Tensor
    targets: Tensor
    weights: Tensor
    tokens: Tensor
    served: Tensor


def collect(losses: RowLosses, scored: Sequence[Scored], n_heads: int) -> HeadLosses:
    """Sums by predictor of the losses of the concatenated rows of `scored`."""
    device = losses.each.device
    counts = torch.zeros(1 + n_heads, dtype=torch.int64)
    sums = torch.zeros(1 + n_heads, device=device)
    correct, served, served_correct = torch.zeros(3, 1 + n_heads, dtype=torch.int64, device=device)
    sizes = [len(part.targets) for part in scored]
    for part, each, hits in zip(scored, losses.each.split(sizes), losses.correct.split(sizes), strict=True):
        counts[part.predictor] = len(part.targets)
        sums[part.predictor], correct[part.predictor] = each.sum(), hits.sum()
        served[part.predictor], served_correct[part.predictor] = part.served.sum(), (hits & part.served).sum()
    return HeadLosses(losses.total, sums, counts.to(device), correct, served, served_correct)
