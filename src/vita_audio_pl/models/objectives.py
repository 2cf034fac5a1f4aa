"""Objectives: which rows a predictor is trained on, and against what. A stage or an experiment picks one by name.

All are sums over labels divided by the batch's divisor (the labels of the whole global step), which comes inside the
row weights. The backbone, where it trains, always has the cross entropy of every label and weight 1; each of the K
heads has weight `w / K`. A head has the rows at positions `k + 1` and later of each document (VITA-Audio, section 3.3).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.distillation import distillation_loss
from vita_audio_pl.models.layout import PackedLayout
from vita_audio_pl.models.liger import liger_cross_entropy
from vita_audio_pl.models.linear_cross_entropy import RowLosses, linear_cross_entropy
from vita_audio_pl.packed import IGNORE_INDEX
from vita_audio_pl.text.vocabulary import Vocabulary

RowLoss = Callable[[Tensor, Tensor, Tensor, Tensor], RowLosses]
"""`(hidden, weight, targets, row_weights) -> RowLosses`, as `linear_cross_entropy`."""


class HeadLosses(NamedTuple):
    """Losses of one step; entry 0 of each vector is the backbone, entry `k + 1` head `k`.

    total: scalar with gradient, divisor and weights included: the global loss is the sum of all ranks' and
    micro-batches' totals. sums: `(1 + K,)` float32, unweighted losses summed over scored labels; counts: `(1 + K,)`
    int64, scored labels; correct: `(1 + K,)` int64, of these predicted right; served: `(1 + K,)` int64, of the scored
    those that the predictor writes under the decoding pattern; served_correct: of these predicted right. The vectors are
    detached. pairs: `(pairs, 4)` float64, of answers in pairs the log-probabilities of the chosen and of the rejected one, and
    their rewards, NaN where a pair cannot be compared; no rows under other objectives.
    """

    total: Tensor
    sums: Tensor
    counts: Tensor
    correct: Tensor
    served: Tensor
    served_correct: Tensor
    pairs: Tensor = torch.empty(0, 4, dtype=torch.float64)

    def merge(self, other: "HeadLosses") -> "HeadLosses":
        """Both together; one of them has the pairs."""
        pairs = self.pairs if len(self.pairs) else other.pairs
        return HeadLosses._make([*(mine + its for mine, its in zip(self[:-1], other[:-1], strict=True)), pairs])


@dataclass(frozen=True)
class Scored:
    """The scored rows of one predictor.

    predictor: 0 the backbone, k + 1 head k; hidden: (rows, hidden), normed; targets: (rows,) int64; weights: (rows,)
    float32, divisor included; tokens: (rows,) int64 on the CPU, ascending, the token each row stands at; served: (rows,)
    bool, whether the predictor writes the target under the decoding pattern; layout: of the batch that the rows are from.
    """

    predictor: int
    hidden: Tensor
    targets: Tensor
    weights: Tensor
    tokens: Tensor
    served: Tensor
    layout: PackedLayout


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


class Objective:
    """`CE_backbone + (w / K) * sum_k L_k`, where a subclass says which rows train head k and what `L_k` is."""

    def __init__(self, weight: float = 1.0, kernel: str = "torch", chunk_rows: int = 512):
        """weight: w; kernel: `torch` or `liger` (CUDA only); chunk_rows: rows whose logits exist at a time.

        Raises:
            UserError: an unknown kernel, a negative weight, or fewer than one row.
        """
        kernels: dict[str, RowLoss] = {
            "torch": partial(linear_cross_entropy, chunk_rows=chunk_rows),
            "liger": liger_cross_entropy,
        }
        if kernel not in kernels:
            raise UserError(f"objective.kernel is '{kernel}'; it must be one of {', '.join(kernels)}")
        if weight < 0 or chunk_rows < 1:
            raise UserError(f"objective.weight={weight}, chunk_rows={chunk_rows}: want weight >= 0 and chunk_rows >= 1")
        self.weight, self.chunk_rows, self._row_loss = weight, chunk_rows, kernels[kernel]

    def trains_on(self, layout: PackedLayout, predictor: int) -> np.ndarray:
        """Tokens whose successor `predictor` (0 the backbone, k + 1 head k) is trained to predict: `(tokens,)` bool."""
        labelled: np.ndarray = layout.targets != IGNORE_INDEX
        return labelled

    def weight_of(self, predictor: int, n_heads: int) -> float:
        """Weight of a predictor's loss: 1 for the backbone, `w / K` for a head."""
        return 1.0 if predictor == 0 else self.weight / n_heads

    def vocabulary_rows(self, predictor: int, rows: int) -> int:
        """Logits per scored row of `predictor`; rows: rows of the vocabulary layer."""
        return rows

    def teacher_rows(self, predictor: int, rows: int) -> int:
        """Additional logits per scored row of `predictor`, for its teacher."""
        return 0

    def losses(self, lm_head: torch.nn.Module, scored: Sequence[Scored], backbone: Tensor, n_heads: int) -> HeadLosses:
        """Losses of the scored rows of all predictors through the vocabulary layer `lm_head`.

        backbone: (tokens, hidden), the backbone's normed output of every token.
        """
        return self.cross_entropy(lm_head, scored, n_heads)

    def cross_entropy(
        self, lm_head: torch.nn.Module, scored: Sequence[Scored], n_heads: int, vocabulary: Tensor | None = None
    ) -> HeadLosses:
        """One call for all rows; over the rows `vocabulary` (ascending ids) of the matrix alone, where given."""

        def loss(hidden: Tensor, weight: Tensor) -> RowLosses:
            targets = torch.cat([part.targets for part in scored])
            if vocabulary is not None:
                ids = vocabulary.to(weight.device)
                weight, targets = weight.index_select(0, ids), torch.searchsorted(ids, targets)
            return self._row_loss(hidden, weight, targets, torch.cat([part.weights for part in scored]))

        return collect(lm_head(torch.cat([part.hidden for part in scored]), loss=loss), scored, n_heads)


class EveryHead(Objective):
    """`CE_backbone + (w / K) * sum_k CE_k`: every label trains every predictor with its row (the published loss)."""


class AudioOnly(Objective):
    """`CE_backbone + (w / K) * sum_k CE'_k`, where heads learn audio spans only.

    A head's targets are codes, begin and end markers, and the `<|im_end|>` that follows an end marker; its softmax
    `CE'` runs over those ids alone, so audio is all a head can then write.
    """

    def __init__(self, vocabulary: Vocabulary, **options: Any):
        super().__init__(**options)
        self._vocabulary = vocabulary
        markers = [vocabulary.im_end, vocabulary.begin_of_audio, vocabulary.end_of_audio]
        self._ids = torch.tensor(sorted([*markers, *range(vocabulary.first_code, vocabulary.used)]))

    def trains_on(self, layout: PackedLayout, predictor: int) -> np.ndarray:
        labelled = super().trains_on(layout, predictor)
        if predictor == 0:
            return labelled
        words, targets = self._vocabulary, layout.targets
        closing = (targets == words.im_end) & (layout.ids == words.end_of_audio)
        marker = (targets == words.begin_of_audio) | (targets == words.end_of_audio)
        heads_learn: np.ndarray = words.is_code(targets) | marker | closing
        return heads_learn

    def vocabulary_rows(self, predictor: int, rows: int) -> int:
        return len(self._ids) if predictor else rows

    def losses(self, lm_head: torch.nn.Module, scored: Sequence[Scored], backbone: Tensor, n_heads: int) -> HeadLosses:
        heads = [part for part in scored if part.predictor]
        others = [part for part in scored if not part.predictor]
        parts = [self.cross_entropy(lm_head, heads, n_heads, self._ids)] if heads else []
        parts += [self.cross_entropy(lm_head, others, n_heads)] if others else []
        return parts[0] if len(parts) == 1 else parts[0].merge(parts[1])


class ServedSlots(Objective):
    """`CE_backbone + (w / K) * sum_k CE''_k`, where head k learns the tokens it writes under the decoding pattern only.

    The backbone keeps every label, so decoding without heads and verification stay whole.
    """

    def trains_on(self, layout: PackedLayout, predictor: int) -> np.ndarray:
        labelled = super().trains_on(layout, predictor)
        return labelled & (layout.target_writers == predictor) if predictor else labelled


class Distil(Objective):
    """`CE_backbone + (w / K) * sum_k D_k`, where `D_k` draws head k to the backbone's own distribution at the same row.

    `D = lambda KL(t || s) + (1 - lambda) TV(t, s)` or `-log(1 - TV(t, s))` over labelled rows, see `models.distillation`;
    the backbone's distribution `t` is a constant. A head's `correct` counts agreement with the backbone's choice, not with the label.
    """

    def __init__(self, kl_share: float | str = 0.5, **options: Any):
        """kl_share: lambda, in [0, 1], or `acceptance` for the second form.

        Raises:
            UserError: another `kl_share`, or another kernel than `torch`.
        """
        super().__init__(**options)
        if kl_share != "acceptance" and not (isinstance(kl_share, int | float) and 0 <= kl_share <= 1):
            raise UserError(f"objective.kl_share is {kl_share}; it must lie in [0, 1], or be acceptance")
        if options.get("kernel", "torch") != "torch":
            raise UserError("objective.kernel=liger has no distillation; set objective.kernel=torch")
        self.kl_share = kl_share

    def teacher_rows(self, predictor: int, rows: int) -> int:
        return (
            rows if predictor == 1 else 0
        )  # once for all heads of a token; the first head has all tokens of the others

    def losses(self, lm_head: torch.nn.Module, scored: Sequence[Scored], backbone: Tensor, n_heads: int) -> HeadLosses:
        heads = [part for part in scored if part.predictor]
        others = [part for part in scored if not part.predictor]
        parts = [self._distil(lm_head, heads, backbone, n_heads)] if heads else []
        parts += [self.cross_entropy(lm_head, others, n_heads)] if others else []
        return parts[0] if len(parts) == 1 else parts[0].merge(parts[1])

    def _distil(self, lm_head: torch.nn.Module, heads: Sequence[Scored], backbone: Tensor, n_heads: int) -> HeadLosses:
        tokens = torch.cat([part.tokens for part in heads])
        order = torch.argsort(tokens, stable=True)  # all heads of a token side by side: its teacher is made once
        back = torch.argsort(order)
        order_there = order.to(backbone.device)
        weights = torch.cat([part.weights for part in heads])[order_there]

        def loss(hidden: Tensor, weight: Tensor) -> RowLosses:
            return distillation_loss(
                hidden, weight, backbone.detach(), tokens[order], weights, self.kl_share, self.chunk_rows
            )

        hidden = torch.cat([part.hidden for part in heads]).index_select(0, order_there)
        total, each, correct = lm_head(hidden, loss=loss)
        back = back.to(backbone.device)
        return collect(RowLosses(total, each[back], correct[back]), heads, n_heads)


OBJECTIVES: dict[str, type[Objective]] = {
    "every_head": EveryHead,
    "audio_only": AudioOnly,
    "served_slots": ServedSlots,
    "distil": Distil,
}


def build_objective(name: str, vocabulary: Vocabulary | None = None, **options: Any) -> Objective:
    """The objective `name` with its options; `audio_only` needs the vocabulary, `distil` alone takes `kl_share`.

    Raises:
        UserError: an unknown name or option.
    """
    if name not in OBJECTIVES:
        raise UserError(f"objective is '{name}'; it must be one of {', '.join(OBJECTIVES)}")
    if name == "audio_only":
        options["vocabulary"] = vocabulary
    try:
        return OBJECTIVES[name](**options)
    except TypeError as error:
        raise UserError(f"objective '{name}' does not take these options: {error}") from None
