"""Which rows of which sequences pass through a layer together, and what each of them attends to."""

import copy
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_FEW = 16
"""Rows of one sequence, at most, whose mask is a view of a stored one."""


class Span(NamedTuple):
    """Rows `start <= p < stop` of the sequence in cache slot `slot`; a row's number is its token's position."""

    slot: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


class Rows:
    """The rows of several sequences, concatenated, `total` in all, for one pass through the backbone or a head.

    Sequences may have different numbers of rows and context lengths. Attention runs as one batch over all cache slots
    from the first to the last that takes part, where shorter sequences are padded with rows that are discarded, or for
    each sequence by itself.

    Args:
        spans: one per sequence, none empty, slots ascending.
        ids: token of each row.
        first_key: position of the first row that the layer has of any sequence (`k + 1` for head `k`).
        groups: query heads per key head.

    Attributes:
        slots: number of cache slots that attention runs over, from `first_slot`.
        width: rows per slot, after padding.
        dense: whether the rows fill that (slots, width) grid without padding.
        last_key: one past the last position that any row attends to.
        ids, slot_numbers, positions: `(total,)` token, slot and position of each row.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        ids: Sequence[int],
        *,
        first_key: int,
        groups: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.spans = tuple(spans)
        self.first_key = first_key
        self.total = sum(span.length for span in self.spans)
        self.first_slot = self.spans[0].slot
        self.slots = self.spans[-1].slot + 1 - self.first_slot
        self.last_key = max(span.stop for span in self.spans)
        self.width = max(span.length for span in self.spans)
        self.dense = self.total == self.slots * self.width
        self._groups, self._device, self._dtype = groups, device, dtype
        self._ids = ids

    def is_followed_by(self, predictor: int, spans: Sequence[Span]) -> bool:
        """Whether `predictor` is the next head and `spans` are these rows one position later."""
        later = [Span(slot, start + 1, stop + 1) for slot, start, stop in self.spans]
        return predictor == self.first_key + 1 and spans == later

    def following(self, spans: Sequence[Span], ids: Sequence[int]) -> "Rows":
        """Rows of the next head (see `is_followed_by`), which share the masks and grids, as these depend on the shape alone."""
        rows = copy.copy(self)
        rows.spans, rows._ids = tuple(spans), ids
        rows.first_key, rows.last_key = self.first_key + 1, self.last_key + 1
        for stale in ("numbers", "ids", "slot_numbers", "positions"):
            rows.__dict__.pop(stale, None)
        return rows

    @cached_property
    def numbers(self) -> Tensor:
        """`(3, total)`: ids, slot_numbers and positions, in one transfer."""
        slot_numbers = [span.slot for span in self.spans for _ in range(span.length)]
        positions = [p for span in self.spans for p in range(span.start, span.stop)]
        return self._tensor((self._ids, slot_numbers, positions))

    def _tensor(self, numbers: Sequence[object]) -> Tensor:
        # a tenth of the time that torch takes for lists
        return torch.from_numpy(np.array(numbers, np.int64)).to(self._device)

    @cached_property
    def ids(self) -> Tensor:
        return self._tensor(self._ids) if self.alone else self.numbers[0]

    @cached_property
    def slot_numbers(self) -> Tensor:
        return self.numbers[1]

    @cached_property
    def positions(self) -> Tensor:
        return self.numbers[2]

    @property
    def alone(self) -> bool:
        """Whether slices of tables replace index tensors, each of which costs as much as a small product on a CPU."""
        return self.in_one_piece and self._device.type == "cpu"

    @property
    def apart(self) -> bool:
        """Whether each sequence attends by itself: on a CPU, where slots between few sequences cost as much as theirs."""
        few = len(self.spans) == 1 or 2 * self.slots > 3 * len(self.spans)
        return few and self.width > 1 and self._device.type == "cpu"

    def of_table(self, table: Tensor) -> Tensor:
        """Rows of `table` for the positions; a view where they follow one another."""
        return table[self.spans[0].start : self.spans[0].stop] if self.alone else table.index_select(0, self.positions)

    @property
    def sees_all(self) -> bool:
        """Whether no mask is needed."""
        return self.width == 1 and self.dense and all(span.stop == self.last_key for span in self.spans)

    @property
    def in_one_piece(self) -> bool:
        """Whether their cache entries are contiguous, which is known on the host."""
        return len(self.spans) == 1

    @cached_property
    def into_grid(self) -> Tensor | None:
        """`(slots * width,)` row for each cell of the grid; None if the rows fill it in order."""
        if self.dense:
            return None
        grid = [0] * (self.slots * self.width)
        row = 0
        for span in self.spans:
            at = (span.slot - self.first_slot) * self.width
            grid[at : at + span.length] = range(row, row + span.length)
            row += span.length
        return self._tensor(grid)

    @cached_property
    def out_of_grid(self) -> Tensor | None:
        """`(total,)` cell of each row in the grid; None if the rows fill it in order."""
        if self.dense:
            return None
        return self._tensor([(s.slot - self.first_slot) * self.width + i for s in self.spans for i in range(s.length)])

    @cached_property
    def mask(self) -> Tensor | None:
        """Additive attention mask `(slots, 1, groups * width, keys)` of the grid; None if every row attends to every key."""
        if self.sees_all:
            return None
        last_seen = self.positions[:, None] if self.into_grid is None else self.positions[self.into_grid, None]
        keys = torch.arange(self.first_key, self.last_key, device=self._device)
        mask = torch.zeros(last_seen.shape[0], keys.shape[0], dtype=self._dtype, device=self._device)
        mask.masked_fill_(keys > last_seen, float("-inf"))
        mask = mask.view(self.slots, 1, 1, self.width, -1).expand(-1, -1, self._groups, -1, -1)
        return mask.reshape(self.slots, 1, self._groups * self.width, -1)

    @cached_property
    def masks(self) -> list[Tensor | None]:
        """Of each sequence by itself, `(1, 1, groups * rows, keys)`; None for a single row, which attends to all keys."""
        return [self._mask_of(span.length, span.stop - self.first_key) for span in self.spans]

    def _mask_of(self, width: int, n_keys: int) -> Tensor | None:
        if width == 1:
            return None
        if width <= _FEW:
            whole = _stored_mask(1 << n_keys.bit_length(), self._dtype)
            end = whole.shape[1] - _FEW + width
            part = whole[:width, end - n_keys : end]
        else:
            part = torch.full((width, n_keys), float("-inf"), dtype=self._dtype).triu_(n_keys - width + 1)
        return part.expand(self._groups, -1, -1).reshape(1, 1, self._groups * width, n_keys)

    @cached_property
    def last(self) -> list[int]:
        """Index of each sequence's last row among `total`, in the order of `spans`."""
        ends, at = [], 0
        for span in self.spans:
            at += span.length
            ends.append(at - 1)
        return ends


@lru_cache(maxsize=8)
def _stored_mask(keys: int, dtype: torch.dtype) -> Tensor:
    """`(_FEW, keys + _FEW)`: row i attends to the first `keys + 1 + i` keys, so the last rows of any context have a slice of it."""
    with torch.inference_mode(False):
        return torch.full((_FEW, keys + _FEW), float("-inf"), dtype=dtype).triu_(keys + 1)
