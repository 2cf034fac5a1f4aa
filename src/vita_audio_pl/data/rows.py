"""Planned rows as training batches: samples read from the shards and rendered straight into packed tensors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike

from vita_audio_pl.data.prepared import BrokenSample, PreparedSource
from vita_audio_pl.data.samples import TokenizedSample
from vita_audio_pl.errors import UserError
from vita_audio_pl.packed import IGNORE_INDEX, PackedBatch
from vita_audio_pl.text import AudioFrames, Rendered, Renderer, Segment, TextIds, Turn
from vita_audio_pl.text.rendering import NOBODY


class FrontEnd(Protocol):
    """Computes an encoder's features; `vita_audio_pl.models.sensevoice_frontend` has one."""

    def features(self, wave: np.ndarray) -> ArrayLike:
        """Features `(frames, size)` of `wave: (samples,) float32` at 16 kHz."""
        ...


@dataclass(frozen=True, eq=False)
class PlannedRow:
    """One row of the plan: `source` and `sample` number of each document `(n,)`, and the row's number in the run."""

    source: np.ndarray
    sample: np.ndarray
    number: int


EMPTY_ROW = PlannedRow(np.empty(0, np.int16), np.empty(0, np.int64), 0)
"""An empty row: fills a batch up if the rows do not divide evenly."""


@dataclass(frozen=True, eq=False)
class BatchRequest:
    """Rows of one batch, the divisor of its optimiser step, and the data position after it."""

    rows: Sequence[PlannedRow]
    divisor: float
    position: dict[str, Any]

    def reference(self, sources: Mapping[int, PreparedSource], known: Mapping[str, np.ndarray]) -> torch.Tensor | None:
        """`PackedBatch.reference` of the batch, of what is known of each source, `(samples, 2)` float64; None without any."""
        if not known:
            return None
        places = [place for row in self.rows for place in zip(row.source.tolist(), row.sample.tolist(), strict=True)]
        found = [known[sources[number].name][sample] for number, sample in places]
        return torch.from_numpy(np.array(found, np.float64).reshape(-1, 2))


@dataclass(frozen=True)
class Broken:
    """A sample that could not be read in training: its source number, sample number, and why."""

    source: int
    sample: int
    reason: str


@dataclass(frozen=True)
class Reading:
    """Result of reading a batch's samples: number per source number, and failures."""

    seen: dict[int, int]
    broken: list[Broken]


_COLUMNS: dict[str, np.dtype[Any]] = {
    "input_ids": np.dtype(np.int64),
    "labels": np.dtype(np.int64),
    "position_ids": np.dtype(np.int64),
    "loss_weights": np.dtype(np.float32),
    "document_ids": np.dtype(np.int32),
    "sources": np.dtype(np.int16),
    "writers": np.dtype(np.int8),
}
"""Tensors of a batch, sorted by alignment (largest first), so that each is aligned."""


@dataclass(frozen=True)
class Parcel:
    """Batches as sent by a worker: one block of memory, because sending a tensor costs more than filling it.

    Attributes:
        memory: uint8, the columns of `_COLUMNS` one after another, each with the rows of all batches.
        row_length: tokens in a row.
        requests: the requested batches.
        names: per row and document, `source/sample-id`.
        reading: result of reading the samples.
        frames: features of all clips, concatenated, `(frames, size)` float32, with continuous input.
        clip_lengths: per row, number of frames of each of its clips.
    """

    memory: torch.Tensor
    row_length: int
    requests: Sequence[BatchRequest]
    names: list[list[str]]
    reading: Reading
    frames: torch.Tensor | None = None
    clip_lengths: list[list[int]] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        # through the queue's pipe: torch would put tensors into /dev/shm, which is 64 MB in a container, and a worker that
        # finds it full hangs
        return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in vars(self).items()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
        vars(self).update(state, **{name: torch.from_numpy(array) for name, array in arrays.items()})

    @classmethod
    def empty(cls, requests: Sequence[BatchRequest], row_length: int) -> "Parcel":
        """Uninitialised memory for some batches."""
        cells = row_length * sum(len(request.rows) for request in requests)
        memory = torch.empty(sum(dtype.itemsize for dtype in _COLUMNS.values()) * cells, dtype=torch.uint8)
        return cls(memory, row_length, requests, [], Reading({}, []))

    def columns(self) -> dict[str, torch.Tensor]:
        """Columns by name, `(rows of all batches, tokens)`, as views."""
        at, found = 0, dict[str, torch.Tensor]()
        cells = self.row_length * sum(len(request.rows) for request in self.requests)
        for name, dtype in _COLUMNS.items():
            data = self.memory[at : at + dtype.itemsize * cells]
            found[name] = data.view(getattr(torch, dtype.name)).view(-1, self.row_length)
            at += dtype.itemsize * cells
        return found

    def pin_memory(self) -> "Parcel":
        """The same with its audio in pinned memory; the columns stay on the host in training, too."""
        return self if self.frames is None else replace(self, frames=self.frames.pin_memory())

    def unpack(self, weighted: bool) -> Iterator[PackedBatch]:
        """The batches, as views; `weighted` is False if every label weighs 1."""
        columns = self.columns()
        lengths = [n for row in self.clip_lengths for n in row]
        clips = iter(() if self.frames is None else torch.split(self.frames, lengths))
        first = 0
        for request in self.requests:
            rows = slice(first, first + len(request.rows))
            first = rows.stop
            tensors = {name: column[rows] for name, column in columns.items()}
            weights = tensors.pop("loss_weights")
            yield PackedBatch(
                input_ids=tensors["input_ids"],
                labels=tensors["labels"],
                position_ids=tensors["position_ids"],
                document_ids=tensors["document_ids"],
                writers=tensors["writers"],
                loss_weights=weights if weighted else None,
                divisor=request.divisor,
                sources=tensors["sources"],
                names=self.names[rows],
                position=request.position,
                clips=tuple(islice(clips, sum(map(len, self.clip_lengths[rows])))),
            )


class RowBuilder(torch.utils.data.Dataset[Parcel]):
    """Builds batches on request, in any process; stateless.

    Args:
        sources: source number -> source.
        renderer: turns to tokens.
        row_length: tokens in a row.
        seed: seed of the prompt corruption, which otherwise depends only on the row's number.
        front_end: computes an encoder's features, for a vocabulary with continuous input.
    """

    def __init__(
        self,
        sources: Mapping[int, PreparedSource],
        renderer: Renderer,
        row_length: int,
        seed: int,
        front_end: FrontEnd | None = None,
    ):
        self.sources, self._renderer, self._row_length, self._seed = dict(sources), renderer, row_length, seed
        self._front_end = front_end

    def __getitem__(self, requests: Sequence[BatchRequest]) -> Parcel:
        """The requested batches. Unreadable samples become pad tokens without labels."""
        parcel = Parcel.empty(requests, self._row_length)
        arrays = {name: column.numpy() for name, column in parcel.columns().items()}
        ids = np.full(arrays["input_ids"].shape, self._renderer.vocabulary.pad, np.int32)
        for name, nothing in (("labels", IGNORE_INDEX), ("writers", NOBODY), ("loss_weights", 0), ("position_ids", 0)):
            arrays[name].fill(nothing)
        arrays["document_ids"].fill(-1)
        arrays["sources"].fill(-1)
        clips: list[np.ndarray] = []
        for r, row in enumerate(row for request in requests for row in request.rows):
            before = len(clips)
            line = Rendered(ids[r], arrays["labels"][r], arrays["writers"][r], arrays["loss_weights"][r])
            columns = {name: array[r] for name, array in arrays.items()}
            parcel.names.append(self._fill_row(row, line, columns, parcel.reading, clips))
            parcel.clip_lengths.append([len(clip) for clip in clips[before:]])
        arrays["input_ids"][:] = ids
        return replace(parcel, frames=torch.from_numpy(np.concatenate(clips))) if clips else parcel

    def _fill_row(
        self,
        row: PlannedRow,
        line: Rendered,
        columns: dict[str, np.ndarray],
        reading: Reading,
        clips: list[np.ndarray],
    ) -> list[str]:
        """Render the row's samples one after another and collect their encoder features; returns their names."""
        rng = np.random.default_rng([self._seed, row.number])
        names: list[str] = []
        at = 0
        for number, sample in zip(row.source.tolist(), row.sample.tolist(), strict=True):
            reading.seen[number] = reading.seen.get(number, 0) + 1
            pair = self.sources[number].holds_pairs
            try:
                read = self.read(number, sample)
                name, length = read.id, self._render(read, line, at, rng)
                first = self._renderer.length(read.turns[: len(read.turns) // 2]) if pair else length
                clips += [s.features for turn in read.turns for s in turn.segments if isinstance(s, AudioFrames)]
            except (BrokenSample, UserError) as error:
                reading.broken.append(Broken(number, sample, str(error)))
                name, length = f"#{sample} (broken)", self._planned_length(number, sample)
                self._blank(line[at : at + length])
                first = 1 if pair else length
            for document in (first, length - first) if pair else (length,):
                stop = at + document
                columns["position_ids"][at:stop] = self._count[:document]
                columns["document_ids"][at:stop] = len(names)
                columns["sources"][at:stop] = number
                names.append(f"{self.sources[number].name}/{name}")
                at = stop
        return names

    @cached_property
    def _count(self) -> np.ndarray:
        return np.arange(self._row_length)

    def read(self, source: int, sample: int) -> TokenizedSample:
        """A sample; with continuous input, its prompt codes are replaced by features."""
        read = self.sources[source].read(sample)
        heard = [turn.role != "assistant" and turn.counts().n_audios > 0 for turn in read.turns]
        if self._front_end is None or not any(heard):
            return read
        waves, front_end = iter(self.sources[source].read_clips(sample)), self._front_end

        def frames(segment: Segment) -> Segment:
            if isinstance(segment, TextIds):
                return segment
            return AudioFrames(np.asarray(front_end.features(next(waves)), np.float32))

        turns = (
            Turn(turn.role, tuple(map(frames, turn.segments))) if hears else turn
            for turn, hears in zip(read.turns, heard, strict=True)
        )
        return replace(read, turns=tuple(turns))

    def _render(self, read: TokenizedSample, row: Rendered, at: int, rng: np.random.Generator) -> int:
        """Render one sample at `at` of a row; returns its length. An answer that was cut ends with the row."""
        length = self._renderer.length(read.turns)
        if at + length <= self._row_length:
            self._renderer.render_into(read.turns, row[at : at + length], rng)
            return length
        if at:
            raise BrokenSample(f"{read.id}: it has {length} tokens, more than its index says")
        whole = self._renderer.render(read.turns, rng)[: self._row_length]
        for name, column in vars(whole).items():
            getattr(row, name)[:] = column
        return self._row_length

    def _blank(self, part: Rendered) -> None:
        part.ids[:], part.labels[:] = self._renderer.vocabulary.pad, IGNORE_INDEX
        part.writers[:], part.loss_weights[:] = NOBODY, 0

    def _planned_length(self, source: int, sample: int) -> int:
        index, rule = self.sources[source].index, self._renderer.length_rule
        continuous = self._renderer.vocabulary.continuous_input
        return min(int(index.measure(rule, continuous, np.array([sample])).tokens[0]), self._row_length)
