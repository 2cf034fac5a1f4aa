"""Caches of the sequences being decoded: keys and values of every layer, and hidden states that heads still need."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.rows import Rows

Store = Callable[[int, Tensor], None]
"""`(number of a layer, its keys and values)`; see `Cache.store`."""


class Cache:
    """Preallocated and updated in place, for `slots` sequences of up to `capacity` tokens.

    Row `p` of a layer is stored at index `p` of its sequence's slot, so going back to an earlier length only changes
    the caller's counters: stale rows are overwritten before they are read.

    Args:
        layers: layers of the backbone plus one per chained head in use.
        levels: predictors whose outputs are kept for a head (the backbone, and chained heads in use except the last).
        window: rows of those outputs kept per sequence, and so how far a head may lag behind its predecessor.

    Raises:
        UserError: there is not enough memory.
    """

    def __init__(
        self,
        *,
        slots: int,
        capacity: int,
        layers: int,
        key_heads: int,
        head_size: int,
        levels: int,
        window: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.slots, self.capacity, self.window = slots, capacity, window
        # keys, then values; the rows of an attention head are contiguous, so that attention reads memory sequentially
        shape = (layers, 2, slots, key_heads, capacity, head_size)
        try:
            # zeros, not empty: masked entries are multiplied by 0, and 0 * NaN is NaN
            self.memory = torch.zeros(shape, dtype=dtype, device=device)
            self.hidden = torch.zeros(levels, slots * window, hidden_size, dtype=dtype, device=device)
        except (RuntimeError, MemoryError) as error:
            need = slots * (layers * capacity * 2 * key_heads * head_size + levels * window * hidden_size)
            raise UserError(
                f"the caches for {slots} sequences of {capacity} tokens need {need * dtype.itemsize / 2**30:.1f} GiB, "
                f"which {device} does not have; decode fewer at once, or shorter"
            ) from error
        self.by_row = [self.memory[layer].view(-1, head_size) for layer in range(layers)]
        self._slot_step = key_heads * capacity
        heads = torch.arange(key_heads, device=device) * capacity
        self._head_starts = torch.cat((heads, heads + slots * self._slot_step))

    @property
    def nbytes(self) -> int:
        """Bytes allocated; constant."""
        return self.memory.nbytes + self.hidden.nbytes

    def seen(self, rows: Rows, layers: range) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Keys and values `(slots, key_heads, keys, head_size)` of each layer, up to the last key that `rows` need."""
        slots = slice(rows.first_slot, rows.first_slot + rows.slots)
        window = self.memory[layers.start : layers.stop, :, slots, :, rows.first_key : rows.last_key]
        return window.select(1, 0).unbind(0), window.select(1, 1).unbind(0)

    def store(self, rows: Rows, layers: range) -> "Store":
        """A function that stores the keys and values `(rows.total, 2 * key_heads, head_size)` of `rows` in a layer."""
        if rows.in_one_piece:
            [span] = rows.spans
            targets = self.memory[layers.start : layers.stop, :, span.slot, :, span.start : span.stop].unbind(0)

            def write(number: int, key_value: Tensor) -> None:
                targets[number].copy_(key_value.view(span.length, 2, -1, key_value.shape[2]).permute(1, 2, 0, 3))

            return write
        places = self.places(rows)

        def scatter(number: int, key_value: Tensor) -> None:
            by_row = self.by_row[layers[number]]
            by_row.index_copy_(0, places, key_value.reshape(-1, by_row.shape[1]))

        return scatter

    def places(self, rows: Rows) -> Tensor:
        """Indices into `by_row` of the keys and values of `rows`: `(rows.total * 2 * key_heads,)`."""
        starts = rows.slot_numbers * self._slot_step + rows.positions
        out: Tensor = (starts[:, None] + self._head_starts).flatten()
        return out

    def clear(self, slot: int) -> None:
        """Set a slot to zeros."""
        self.memory[:, :, slot].zero_()

    def copy_slot(self, source: int, target: int) -> None:
        """Copy slot `source` to slot `target`."""
        self.memory[:, :, target] = self.memory[:, :, source]
        hidden = self.hidden.unflatten(1, (self.slots, self.window))
        hidden[:, target] = hidden[:, source]

    @contextmanager
    def kept(self, start: int, stop: int) -> Iterator[None]:
        """Restore rows `start <= p < stop` of every slot when the block ends."""
        keys_and_values = self.memory[..., start:stop, :]
        before = keys_and_values.clone()
        places = torch.arange(start, stop, device=self.hidden.device) % self.window
        hidden = self.hidden.unflatten(1, (self.slots, self.window))
        hidden_before = hidden[:, :, places]
        try:
            yield
        finally:
            keys_and_values.copy_(before)
            hidden[:, :, places] = hidden_before

    def keep_hidden(self, level: int, rows: Rows, hidden: Tensor) -> None:
        """Store the outputs `hidden: (rows.total, hidden_size)` of predictor `level` (0: backbone, k + 1: head k)."""
        if level < self.hidden.shape[0]:
            together = self._window_slice(rows, 0)
            if together is not None:
                self.hidden[level, together].copy_(hidden)
            else:
                self.hidden[level].index_copy_(0, self._window_rows(rows, 0), hidden)

    def previous_hidden(self, level: int, rows: Rows, back: int = 1) -> Tensor:
        """Outputs of predictor `level` `back` positions before each of `rows`: `(rows.total, hidden_size)`."""
        together = self._window_slice(rows, back)
        if together is not None:
            return self.hidden[level, together]
        return self.hidden[level].index_select(0, self._window_rows(rows, back))

    def _window_slice(self, rows: Rows, back: int) -> slice | None:
        """The same rows as `_window_rows`, where they follow one another."""
        if not rows.alone:
            return None
        [span] = rows.spans
        first = (span.start - back) % self.window
        if first + span.length > self.window:
            return None
        return slice(span.slot * self.window + first, span.slot * self.window + first + span.length)

    def _window_rows(self, rows: Rows, back: int) -> Tensor:
        out: Tensor = rows.slot_numbers * self.window + (rows.positions - back) % self.window
        return out
