"""Layout of the documents in a packed batch, and the rows that each predictor processes (numpy, on the host)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vita_audio_pl.packed import IGNORE_INDEX, PackedBatch


@dataclass(frozen=True)
class Documents:
    """Consecutive documents in one long row; `lengths`: tokens of each."""

    lengths: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @cached_property
    def boundaries(self) -> np.ndarray:
        """Cumulative lengths with a leading 0: `(documents + 1,)` int32."""
        return np.concatenate(([0], np.cumsum(self.lengths))).astype(np.int32)

    @cached_property
    def numbers(self) -> np.ndarray:
        """The document each token belongs to: `(total,)` int64."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


@dataclass(frozen=True)
class HeadRows:
    """Rows of one head: row `i` reads token `tokens[i]` and the previous predictor's output row `previous[i]`.

    tokens, previous: `(rows,)` int64; documents: what is left of each document, `k + 1` tokens shorter for head `k`.
    """

    tokens: np.ndarray
    previous: np.ndarray
    documents: Documents


class PackedLayout:
    """The documents of a packed batch laid end to end, without padding.

    Attributes (`tokens` = number of tokens that are not padding):
        flat: `(tokens,)` int64, index of each token in the flattened `(rows * length)` batch.
        positions: `(tokens,)` int64, place of each token in its document, from 0.
        documents: their lengths.
        ids: `(tokens,)` int64, input ids.
        targets: `(tokens,)` int64, label of the next token of the same document, -100 where there is none.
        target_writers: `(tokens,)` int8, writer of that token: 0 the backbone, k + 1 head k, -1 none.
        target_weights: `(tokens,)` float32 loss weight of that label.
        divisor: of the loss, labels or pairs of answers in the whole optimiser step; never 0.
        reference: `PackedBatch.reference`.
    """

    def __init__(self, batch: PackedBatch):
        document_ids = batch.document_ids.numpy()
        flat_documents = document_ids.reshape(-1)
        rows = np.repeat(np.arange(document_ids.shape[0]), document_ids.shape[1])
        self.flat = np.flatnonzero(flat_documents >= 0)
        if not len(self.flat):  # nothing but padding: one token without a label, so that every module still runs
            self.flat = np.zeros(1, np.int64)
        kept, row = flat_documents[self.flat], rows[self.flat]
        starts = np.flatnonzero(np.concatenate(([True], (kept[1:] != kept[:-1]) | (row[1:] != row[:-1])))[: len(kept)])
        lengths = np.diff(np.concatenate((starts, [len(kept)])))
        self.documents = Documents(tuple(lengths.tolist()))
        self.positions = np.arange(len(kept)) - np.repeat(starts, lengths)
        # tokens from here to the document's end, this one included
        self._left = np.repeat(lengths, lengths) - self.positions
        self.ids = self._kept(batch.input_ids)
        self.targets = self._next(self._kept(batch.labels), IGNORE_INDEX)
        self.target_writers = self._next(self._kept(batch.writers), -1)
        self.divisor, self.reference = max(batch.divisor, 1e-12), batch.reference
        weights = batch.loss_weights
        self.target_weights = (
            np.ones(len(kept), np.float32) if weights is None else self._next(self._kept(weights), np.float32(0))
        )

    def __len__(self) -> int:
        return len(self.flat)

    def _kept(self, values: Tensor) -> np.ndarray:
        return values.numpy().reshape(-1)[self.flat]

    def _next(self, values: np.ndarray, fill: int | np.float32) -> np.ndarray:
        """`values` of the next token of the same document, `fill` at a document's end."""
        following = np.full_like(values, fill)
        inside = self._left[:-1] > 1
        following[:-1][inside] = values[1:][inside]
        return following

    def head(self, k: int) -> HeadRows:
        """Rows of head `k`: tokens at positions `k + 1` and later of each document.

        The previous predictor (the backbone for `k` = 0) has the rows at positions `k` and later; the last of each
        document is not used, because no token of the document follows it.
        """
        tokens = np.flatnonzero(self.positions > k)
        earlier = np.flatnonzero(self.positions >= k)
        previous = np.flatnonzero(self._left[earlier] > 1)
        lengths = tuple(n - k - 1 for n in self.documents.lengths if n > k + 1)
        return HeadRows(tokens, previous, Documents(lengths))


def to_device(index: np.ndarray, device: torch.device) -> Tensor:
    """Host array to `device` without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(index))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
