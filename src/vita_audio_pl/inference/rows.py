"""Which rows of which sequences pass through a layer together, and what each of them attends to."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

_FEW = 16
"""Rows of one sequence, at most, whose mask is a view of a stored one."""


@dataclass(frozen=True)
class Span:
    """Rows `start <= p < stop` of the sequence in cache slot `slot`; a row's number is its token's position."""

    slot: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


class Rows:
    """The rows of several sequences, concatenated, `total` in all, for one pass through the backbone or a head.

    Sequences may have different numbers of rows and context lengths. Attention runs as one batch over all
    cache slots from the first to the last that takes part; shorter sequences are padded with rows that are discarded.

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

    @cached_property
    def numbers(self) -> Tensor:
        """`(3, total)`: ids, slot_numbers and positions, in one transfer."""
        slot_numbers = [span.slot for span in self.spans for _ in range(span.length)]
        positions = [p for span in self.spans for p in range(span.start, span.stop)]
        return torch.tensor((self._ids, slot_numbers, positions), device=self._device)

    @cached_property
    def ids(self) -> Tensor:
        return torch.tensor(self._ids) if self.alone else self.numbers[0]

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
        return torch.tensor(grid, device=self._device)

    @cached_property
    def out_of_grid(self) -> Tensor | None:
        """`(total,)` cell of each row in the grid; None if the rows fill it in order."""
        if self.dense:
            return None
        places = [(s.slot - self.first_slot) * self.width + i for s in self.spans for i in range(s.length)]
        return torch.tensor(places, device=self._device)

    @cached_property
    def mask(self) -> Tensor | None:
        """Additive attention mask `(slots or 1, 1, groups * width, keys)`; None if every row attends to every key."""
        if self.sees_all:
            return None
        n_keys = self.last_key - self.first_key
        if self.alone and self.width <= _FEW:
            whole = _stored_mask(1 << n_keys.bit_length(), self._dtype)
            end = whole.shape[1] - _FEW + self.width
            part = whole[: self.width, end - n_keys : end].expand(self._groups, -1, -1)
            return part.reshape(1, 1, self._groups * self.width, n_keys)
        last_seen = self.positions[:, None] if self.into_grid is None else self.positions[self.into_grid, None]
        keys = torch.arange(self.first_key, self.last_key, device=self._device)
        mask = torch.zeros(last_seen.shape[0], keys.shape[0], dtype=self._dtype, device=self._device)
        mask.masked_fill_(keys > last_seen, float("-inf"))
        mask = mask.view(self.slots, 1, 1, self.width, -1).expand(-1, -1, self._groups, -1, -1)
        return mask.reshape(self.slots, 1, self._groups * self.width, -1)

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
