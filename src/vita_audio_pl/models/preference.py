"""The objective of the stage on pairs of answers: DPO (arXiv 2305.18290), with the predictors that write the answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.layout import PackedLayout, to_device
from vita_audio_pl.models.linear_cross_entropy import RowLosses
from vita_audio_pl.models.objectives import HeadLosses, Objective, Scored, collect


class Preference(Objective):
    """Mean over pairs of `-log sigmoid(beta * (d_chosen - d_rejected)) + sft_weight * CE_chosen`.

    `d` is how much likelier an answer has become than it was under the reference, `log p - log p_reference`. An answer's
    `log p` sums over its tokens the log-probability that the predictor gives which writes the token under the decoding
    pattern: the backbone or head k. `CE_chosen` is the chosen answer's mean cross entropy over its tokens (RPO, arXiv
    2404.19733). Where the backbone is frozen, both cover only the tokens that heads write; a pair without any, such as one
    of text alone, teaches nothing. Documents 2i and 2i + 1 of a batch are the chosen and the rejected answer of pair i.

    The gradient in `log p` of an answer is one number, so a first pass over the logits without a graph gives that number
    for each document, and a second one the cross entropy with rows weighted by it: exact, and no logits are stored.
    """

    def __init__(self, beta: float, sft_weight: float = 0.0, **options: Any):
        super().__init__(**options)
        self.beta, self.sft_weight = beta, sft_weight

    def trains_on(self, layout: PackedLayout, predictor: int) -> np.ndarray:
        written: np.ndarray = super().trains_on(layout, predictor) & (layout.target_writers == predictor)
        return written

    def weight_of(self, predictor: int, n_heads: int) -> float:
        return 1.0

    def teacher_rows(self, predictor: int, rows: int) -> int:
        return rows  # logits are made twice

    def losses(self, lm_head: torch.nn.Module, scored: Sequence[Scored], backbone: Tensor, n_heads: int) -> HeadLosses:
        """As `Objective.losses`. Without a graph the batch may lack its reference, and the rewards are NaN then.

        Raises:
            UserError: there is a graph, and no reference.
        """
        layout = scored[0].layout
        if torch.is_grad_enabled() and layout.reference is None:
            raise UserError(
                "a stage on pairs of answers needs the reference's log-probabilities, and the batch has none"
            )
        pairs = torch.empty(0, 4, dtype=torch.float64)

        def loss(hidden: Tensor, weight: Tensor) -> RowLosses:
            nonlocal pairs
            targets = torch.cat([part.targets for part in scored])
            each_one = torch.cat([part.weights for part in scored])  # of every row 1 / divisor
            documents = to_device(layout.documents.numbers[torch.cat([part.tokens for part in scored])], hidden.device)
            with torch.no_grad():
                first = self._row_loss(hidden.detach(), weight.detach(), targets, each_one)
                pairs, value, slopes = self._compare(layout, documents, first.each)
            if not torch.is_grad_enabled():
                return RowLosses(value, first.each, first.correct)
            total, each, correct = self._row_loss(
                hidden, weight, targets, each_one * slopes[documents].to(each_one.dtype)
            )
            return RowLosses(
                value + (total - total.detach()), each, correct
            )  # the value is the loss's, the gradient total's

        found = lm_head(torch.cat([part.hidden for part in scored]), loss=loss)
        return collect(found, scored, n_heads)._replace(pairs=pairs)

    def _compare(self, layout: PackedLayout, documents: Tensor, each: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the pairs of a batch give.

        Args:
            documents: `(rows,)` int64, the document that each row belongs to; each: `(rows,)`, their cross entropies.

        Returns:
            `HeadLosses.pairs`; the loss, divided; and for each document the loss's gradient in one of its rows' cross
            entropies, `(documents,)` float64, not divided.
        """
        count = len(layout.documents.lengths) // 2
        sums = torch.zeros(2, max(1, len(layout.documents.lengths)), dtype=torch.float64, device=each.device)
        sums.index_add_(1, documents, torch.stack([each.double(), torch.ones_like(each, dtype=torch.float64)]))
        entropy, tokens = sums[:, : 2 * count].reshape(2, count, 2)
        if layout.reference is None:
            reference = torch.full_like(entropy, torch.nan)
        else:
            reference = layout.reference.to(each.device)
        log_p = torch.where(tokens > 0, -entropy, torch.nan)
        rewards = self.beta * (log_p - reference)
        margin = rewards[:, 0] - rewards[:, 1]
        known = margin.isfinite()  # a pair with a broken sample teaches nothing
        pull = torch.where(known, self.beta * torch.sigmoid(-margin), 0.0)
        slopes = torch.zeros_like(sums[0])
        slopes[0 : 2 * count : 2] = pull + torch.where(known, self.sft_weight / tokens[:, 0], 0.0)
        slopes[1 : 2 * count : 2] = -pull
        losses = F.softplus(-margin) + self.sft_weight * entropy[:, 0] / tokens[:, 0]
        value = torch.where(known, losses, 0.0).sum() / layout.divisor
        pairs = torch.cat([log_p, torch.where(known[:, None], rewards, torch.nan)], dim=1)
        return pairs, value.float(), slopes
