"""The order of training data, a pure function of (index, mixture, seed, epoch, window): only a place is saved.

Every source is an endless stream of passes, each in a seeded order (`feistel.py`). An epoch takes `ratio` passes of
each. It is cut into windows of about 65,536 samples in which each source has its share of the tokens; each window is
packed into rows (`packing.py`), and its rows are ordered so that every source is spread evenly. The emptiest row of an
epoch is carried over to the next.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from vita_audio_pl.data.feistel import Permutation
from vita_audio_pl.data.packing import best_fit_decreasing
from vita_audio_pl.errors import UserError

WINDOW = 65_536
_COUNTED_WINDOWS = 32
"""Samples of an epoch that are planned to count its rows: two million, about two seconds."""


@dataclass(frozen=True, eq=False)
class PlannedSource:
    """A source, as the planner sees it.

    Attributes:
        name: with the seed, determines the order.
        tokens: `(samples,) uint32` row length of each sample; 0 = excluded (quarantined, or longer than a row).
        ratio: passes over the source per epoch.
        num: number of samples to use, a seeded choice; None = all.
        block: samples that stay together in the order, so that large samples (audio) are read sequentially;
            they are still shuffled within a window. `num` is then rounded up to whole blocks.
    """

    name: str
    tokens: np.ndarray
    ratio: float
    num: int | None = None
    block: int = 1

    def __post_init__(self) -> None:
        missing = -len(self.tokens) % self.block
        if missing:  # the last block is padded with samples that are excluded
            object.__setattr__(self, "tokens", np.concatenate([self.tokens, np.zeros(missing, self.tokens.dtype)]))


@dataclass(frozen=True, eq=False)
class Window:
    """Packed rows in order: row r holds the samples `starts[r]` to `starts[r + 1]`.

    Attributes:
        source: `(n,) int16` number of the source of each sample.
        sample: `(n,) uint32` number of the sample in its source.
        starts: `(rows + 1,) int64`.
    """

    source: np.ndarray
    sample: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True)
class Place:
    """A position in the order: the next row is `row` of `window` of `epoch`; `phase` counts changes of the ratios."""

    phase: int = 0
    epoch: int = 0
    window: int = 0
    row: int = 0


@dataclass(frozen=True)
class Change:
    """New ratios, by source number, from the window after (`epoch`, `window`) of the previous phase."""

    epoch: int
    window: int
    ratios: tuple[float, ...]


class SourceOrder:
    """The endless stream of one source: every pass visits each used sample once, in a new order."""

    def __init__(self, source: PlannedSource, *key: object):
        self._block = source.block
        blocks = len(source.tokens) // source.block
        used = blocks if source.num is None else min(blocks, -(-source.num // source.block))
        self.used = used * source.block
        self._choice = Permutation(blocks, *key, "choice") if used < blocks else None
        self._of_pass = lru_cache(maxsize=4)(lambda number: Permutation(used, *key, "pass", number))

    def samples(self, start: int, stop: int) -> np.ndarray:
        """Samples at stream positions `start` to `stop`, `(stop - start,) uint32`."""
        pieces = []
        while start < stop:
            number, first = divmod(start, self.used)
            last = min(self.used, first + stop - start)
            positions = np.arange(first, last, dtype=np.uint32)
            block = self._of_pass(number)(positions // np.uint32(self._block) if self._block > 1 else positions)
            block = self._choice(block) if self._choice else block
            pieces.append(
                block * np.uint32(self._block) + positions % np.uint32(self._block) if self._block > 1 else block
            )
            start += last - first
        return np.concatenate(pieces) if pieces else np.empty(0, np.uint32)


class Phase:
    """A period of training with fixed ratios: how epochs and windows divide the streams.

    Args:
        sources: the sources, with their ratios set to `ratios`.
        orders: the stream of each source.
        ratios: passes over each source per epoch.
        origin: stream position of each source at the start of the phase.
        window: approximate samples per window.

    Raises:
        UserError: there are no samples to train on.
    """

    def __init__(
        self,
        sources: Sequence[PlannedSource],
        orders: Sequence[SourceOrder],
        ratios: Sequence[float],
        origin: Sequence[int],
        window: int,
    ):
        self.sources, self.orders, self.ratios, self.origin = sources, orders, tuple(ratios), tuple(origin)
        self._tokens = [
            _tokens_used(source, order) * r for source, order, r in zip(sources, orders, ratios, strict=True)
        ]
        if not any(self._tokens):
            raise UserError("no sample of the mixture can be trained on: all are quarantined or longer than a row")
        per_epoch = sum(order.used * ratio for order, ratio in zip(orders, ratios, strict=True))
        self.windows = max(1, round(per_epoch / window))
        self._walked: dict[int, dict[int, _Walk]] = {}  # epoch -> window -> state at its start

    @property
    def tokens_per_epoch(self) -> float:
        """Tokens per epoch, up to rounding of the ratios."""
        return sum(self._tokens)

    @property
    def shares(self) -> list[float]:
        """Share of each source in an epoch's tokens."""
        return [tokens / self.tokens_per_epoch for tokens in self._tokens]

    def epoch_range(self, number: int, epoch: int) -> tuple[int, int]:
        """Range of stream positions of source `number` in `epoch`; together the epochs cover every position once."""
        per_epoch = self.orders[number].used * self.ratios[number]
        return self.origin[number] + round(per_epoch * epoch), self.origin[number] + round(per_epoch * (epoch + 1))

    def samples(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and number of each sample of a window, unpacked; walks through windows that were skipped."""
        walk = self._walk_to(epoch, window)
        source = np.repeat(np.arange(len(walk.found), dtype=np.int16), [len(samples) for samples in walk.found])
        return source, np.concatenate(walk.found)

    def positions_after(self, epoch: int, window: int) -> tuple[int, ...]:
        """Stream position of each source after a window."""
        return self._walk_to(epoch, window).positions

    def _walk_to(self, epoch: int, window: int) -> "_Walk":
        """The state after `window`, computed from the nearest known window."""
        if epoch not in self._walked:
            start = tuple(self.epoch_range(number, epoch)[0] for number in range(len(self.sources)))
            self._walked = {e: known for e, known in self._walked.items() if e == epoch - 1}
            self._walked[epoch] = {0: _Walk(start, (0,) * len(start), ())}
        known = self._walked[epoch]
        at = max(w for w in known if w <= window)
        walk = known[at]
        while at <= window:
            steps = [self._advance(number, epoch, walk, at + 1) for number in range(len(self.sources))]
            walk = _Walk(*(tuple(column) for column in zip(*steps, strict=True)))
            at += 1
            known[at] = _Walk(walk.positions, walk.taken, ())
        return walk

    def _advance(self, number: int, epoch: int, walk: "_Walk", windows_done: int) -> tuple[int, int, np.ndarray]:
        """Position, token count and sample count of one source after `windows_done` windows of the epoch."""
        position, taken = walk.positions[number], walk.taken[number]
        start, stop = self.epoch_range(number, epoch)
        last = windows_done >= self.windows
        goal = np.inf if last else self._tokens[number] * windows_done / self.windows
        chunk = stop - position if last else (stop - start) // self.windows + 64
        pieces = [np.empty(0, np.uint32)]
        while position < stop:
            samples = self.orders[number].samples(position, min(stop, position + chunk))
            tokens = self.sources[number].tokens[samples].astype(np.int64)
            ends = taken + np.cumsum(tokens)
            n = int(np.searchsorted(ends - tokens / 2, goal))  # by the window in which its middle token falls
            pieces.append(samples[:n][tokens[:n] > 0])
            position += n
            taken = int(ends[n - 1]) if n else taken
            if n < len(samples):
                break
            chunk = max(chunk // 8, 64)
        return position, taken, np.concatenate(pieces)


@dataclass(frozen=True, eq=False)
class _Walk:
    """State between two windows: stream positions, tokens used in this epoch, and the previous window's samples."""

    positions: tuple[int, ...]
    taken: tuple[int, ...]
    found: tuple[np.ndarray, ...]


def _tokens_used(source: PlannedSource, order: SourceOrder) -> int:
    """Tokens in one pass over a source."""
    if order.used == len(source.tokens):
        return int(source.tokens.sum(dtype=np.int64))
    return int(source.tokens[order.samples(0, order.used)].sum(dtype=np.int64))


@dataclass(frozen=True, eq=False)
class _Packed:
    """Samples of a window and the row of each."""

    source: np.ndarray
    sample: np.ndarray
    row: np.ndarray
    rows: int


class Plan:
    """Packed rows for training, in an endless order.

    Args:
        sources: the sources of the mixture.
        row_length: tokens in a row.
        seed: seed of the order.
        window: samples that are packed together.
        changes: changes of the ratios so far.

    Raises:
        UserError: there are no samples to train on.
    """

    def __init__(
        self,
        sources: Sequence[PlannedSource],
        row_length: int,
        seed: int,
        window: int = WINDOW,
        changes: Sequence[Change] = (),
    ):
        self.sources, self.row_length, self.seed, self._window = tuple(sources), row_length, seed, window
        self._orders = [SourceOrder(source, seed, source.name) for source in self.sources]
        ratios = [source.ratio for source in self.sources]
        self.phases = [Phase(self.sources, self._orders, ratios, [0] * len(ratios), window)]
        self.changes: list[Change] = []
        self._tails: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        for change in changes:
            self.change(change)

    def change(self, change: Change) -> None:
        """Start a phase with other ratios after a window of the current phase."""
        origin = self.phases[-1].positions_after(change.epoch, change.window)
        self.phases.append(Phase(self.sources, self._orders, change.ratios, origin, self._window))
        self.changes.append(change)

    def rows(self, place: Place) -> Iterator[tuple[np.ndarray, np.ndarray, Place]]:
        """Rows from `place` on, endlessly: sources and samples of each row, and the place after it."""
        while True:
            window = self.window(place.phase, place.epoch, place.window)
            for row in range(place.row, len(window)):
                part = slice(window.starts[row], window.starts[row + 1])
                yield window.source[part], window.sample[part], dataclasses.replace(place, row=row + 1)
            place = self._after(place)

    @cached_property
    def rows_per_epoch(self) -> float:
        """Rows of the first epoch: counted, or extrapolated from the first windows if it is very large."""
        phase = self.phases[0]
        counted = min(phase.windows, _COUNTED_WINDOWS)
        return sum(len(self.window(0, 0, number)) for number in range(counted)) * phase.windows / counted

    def _after(self, place: Place) -> Place:
        """The start of the window after the one of `place`."""
        if place.phase < len(self.changes):
            change = self.changes[place.phase]
            if (change.epoch, change.window) == (place.epoch, place.window):
                return Place(place.phase + 1)
        if place.window + 1 < self.phases[place.phase].windows:
            return Place(place.phase, place.epoch, place.window + 1)
        return Place(place.phase, place.epoch + 1)

    def window(self, phase: int, epoch: int, number: int) -> Window:
        """The rows of one window, in order."""
        packed = self._packed(phase, epoch, number)
        if number == self.phases[phase].windows - 1:
            packed, self._tails[phase, epoch] = self._split_tail(packed)
        return self._spread(packed, phase, epoch, number)

    def _packed(self, phase: int, epoch: int, number: int) -> _Packed:
        source, sample = self.phases[phase].samples(epoch, number)
        if number == 0:
            tail = self._tail_before(phase, epoch)
            source, sample = np.concatenate([tail[0], source]), np.concatenate([tail[1], sample])
        row, rows = best_fit_decreasing(self._tokens(source, sample), self.row_length)
        return _Packed(source, sample, row, rows)

    def _tokens(self, source: np.ndarray, sample: np.ndarray) -> np.ndarray:
        tokens = np.empty(len(sample), np.int64)
        for number in np.unique(source).tolist():
            here = source == number
            tokens[here] = self.sources[number].tokens[sample[here]]
        return tokens

    def _tail_before(self, phase: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """What the previous epoch carries over into this one."""
        nothing = np.empty(0, np.int16), np.empty(0, np.uint32)
        if epoch == 0:
            if phase == 0:
                return nothing
            change, windows = self.changes[phase - 1], self.phases[phase - 1].windows
            return self._tail(phase - 1, change.epoch) if change.window == windows - 1 else nothing
        return self._tail(phase, epoch - 1)

    def _tail(self, phase: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of the emptiest row of an epoch's last window."""
        first = epoch
        if self.phases[phase].windows == 1:  # with one window per epoch, each remainder is packed into the next
            while first > 0 and (phase, first - 1) not in self._tails:
                first -= 1
        for e in range(first, epoch + 1):
            if (phase, e) not in self._tails:
                packed = self._packed(phase, e, self.phases[phase].windows - 1)
                self._tails[phase, e] = self._split_tail(packed)[1]
        return self._tails[phase, epoch]

    def _split_tail(self, packed: _Packed) -> tuple[_Packed, tuple[np.ndarray, np.ndarray]]:
        """Remove the emptiest row, which the next epoch packs again, unless it is full."""
        fill = np.bincount(packed.row, self._tokens(packed.source, packed.sample), minlength=packed.rows)
        emptiest = int(np.argmin(fill)) if packed.rows else -1
        if packed.rows == 0 or fill[emptiest] == self.row_length:
            return packed, (np.empty(0, np.int16), np.empty(0, np.uint32))
        tail = packed.row == emptiest
        row = packed.row - (packed.row > emptiest)  # the rows after it move up by one
        kept = _Packed(packed.source[~tail], packed.sample[~tail], row[~tail], packed.rows - 1)
        return kept, (packed.source[tail], packed.sample[tail])

    def _spread(self, packed: _Packed, *key: int) -> Window:
        """Rows in an order that spreads every source evenly; samples within a row are shuffled."""
        rng = np.random.default_rng([self.seed, *key])
        tokens = self._tokens(packed.source, packed.sample)
        n_sources = len(self.sources)
        # a row is attributed to the source with most of its tokens
        cell = packed.row.astype(np.int64) * n_sources + packed.source
        mostly = np.bincount(cell, tokens, packed.rows * n_sources).reshape(-1, n_sources).argmax(axis=1)
        # the i-th of a source's n rows, in random order, gets a time drawn from [i/n, (i+1)/n): sorted by it, the rows of
        # every source are spread over the whole window, however unequal the sources are
        shuffled = rng.permutation(packed.rows)
        by_source = shuffled[np.argsort(mostly[shuffled], kind="stable")]
        count = np.bincount(mostly, minlength=n_sources)
        rank = np.arange(packed.rows) - np.repeat(np.cumsum(count) - count, count)
        when = np.empty(packed.rows)
        when[by_source] = (rank + rng.random(packed.rows)) / np.repeat(count, count)
        # samples sorted by their row's place; a random second key shuffles them within the row
        place_of_row = np.empty(packed.rows, np.int64)
        place_of_row[np.argsort(when)] = np.arange(packed.rows)
        place = place_of_row[packed.row]
        order = np.lexsort((rng.random(len(place)), place))
        starts = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=packed.rows))])
        return Window(packed.source[order], packed.sample[order], starts)


def pack_once(source: PlannedSource, row_length: int, rows: int) -> Window:
    """A fixed choice of about `rows` packed rows of one source, each sample at most once; fewer if it has fewer."""
    stream = SourceOrder(source, source.name, "once")
    order = stream.samples(0, stream.used)
    order = order[source.tokens[order] > 0]
    order = order[: int(np.searchsorted(np.cumsum(source.tokens[order], dtype=np.int64), rows * row_length, "right"))]
    row, n_rows = best_fit_decreasing(source.tokens[order], row_length)
    by_row = np.argsort(row, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n_rows))])
    return Window(np.zeros(len(order), np.int16), order[by_row], starts)
