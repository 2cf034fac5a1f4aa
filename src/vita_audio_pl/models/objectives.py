"""Objectives: which rows a predictor is trained on, and against what. A stage or an experiment picks one by name."""

import numpy as np
import torch
from torch import Tensor

from vita_audio_pl.models.layout import PackedLayout
from vita_audio_pl.models.linear_cross_entropy import linear_cross_entropy
from vita_audio_pl.models.losses import HeadLosses, Scored, collect
from vita_audio_pl.packed import IGNORE_INDEX


class EveryHead:
    """Every label trains every predictor: `CE_backbone + (w / K) * sum_k CE_k` (VITA-Audio, section 3.3).

    Each `CE` is a sum over labels divided by the batch's divisor. A head sees the labels whose predicting row it has:
    position `k + 1` or later in the document.
    """

    name = "every_head"

    def __init__(self, weight: float = 1.0, chunk_rows: int = 512):
        self.weight, self.chunk_rows = weight, chunk_rows

    def scored(self, layout: PackedLayout, predictor: int) -> np.ndarray:
        """Tokens whose next token predictor `predictor` (0 backbone, k + 1 head k) is trained on: `(tokens,)` bool."""
        return layout.targets != IGNORE_INDEX

    def weight_of(self, predictor: int, n_heads: int) -> float:
        """Weight of a predictor's loss: 1 for the backbone, `w / K` for a head."""
        return 1.0 if predictor == 0 else self.weight / n_heads

    def losses(self, lm_head, scored: list[Scored], backbone: Tensor, n_heads: int) -> HeadLosses:
        """Losses of the scored rows of all predictors, in one call through the vocabulary layer `lm_head`.

        backbone: (tokens, hidden), the backbone's normed output of every token.
        """

        def loss(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            targets = torch.cat([part.targets for part in scored])
            weights = torch.cat([part.weights for part in scored])
            return tuple(linear_cross_entropy(hidden, weight, targets, weights, self.chunk_rows))

        rows = lm_head(torch.cat([part.hidden for part in scored]), loss=loss)
        return collect(*rows, scored, 1 + n_heads)
