"""Planned rows as training batches: samples fetched from the shards and rendered straight into packed tensors."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from vita_audio_pl.data.prepared import BrokenSample, PreparedSource
from vita_audio_pl.errors import UserError
from vita_audio_pl.packed import IGNORE_INDEX, PackedBatch
from vita_audio_pl.text import Rendered, Renderer
from vita_audio_pl.text.rendering import NOBODY


@dataclass(frozen=True, eq=False)
class PlannedRow:
    """One row of the plan: `source` and `sample` number of each document `(n,)`, and the row's number in the run."""

    source: np.ndarray
    sample: np.ndarray
    number: int


@dataclass(frozen=True, eq=False)
class BatchRequest:
    """Rows of one batch, the divisor of its optimiser step, and the data position when it has been consumed."""

    rows: Sequence[PlannedRow]
    divisor: float
    position: dict[str, Any]


@dataclass(frozen=True)
class Broken:
    """A sample that could not be read while training: number of its source, its number there, and why."""

    source: int
    sample: int
    reason: str


@dataclass(frozen=True)
class Reading:
    """What came of reading a batch's samples: how many per source number, and those that failed."""

    seen: dict[int, int]
    broken: list[Broken]


class RowBuilder(torch.utils.data.Dataset[tuple[PackedBatch, Reading]]):
    """Builds batches on request, in any process, with nothing remembered between them.

    Args:
        sources: source number -> source.
        renderer: turns to tokens.
        row_length: tokens in a row.
        seed: of the prompt corruption, which beside it depends on the row's number only.
    """

    def __init__(self, sources: Mapping[int, PreparedSource], renderer: Renderer, row_length: int, seed: int):
        self.sources, self._renderer, self._row_length, self._seed = dict(sources), renderer, row_length, seed
        options = renderer.options
        self._weighted = (options.text_weight, options.audio_weight) != (1, 1)

    def __getitem__(self, request: BatchRequest) -> tuple[PackedBatch, Reading]:
        """The batch, and the samples of it that could not be read: theirs are pad tokens without labels."""
        shape = (len(request.rows), self._row_length)
        canvas = Rendered(
            np.full(shape, self._renderer.vocabulary.pad, np.int32),
            np.full(shape, IGNORE_INDEX, np.int64),
            np.full(shape, NOBODY, np.int8),
            np.zeros(shape, np.float32),
        )
        positions = np.zeros(shape, np.int64)
        documents = np.full(shape, -1, np.int32)
        origins = np.full(shape, -1, np.int16)
        names: list[list[str]] = []
        broken: list[Broken] = []
        seen: Counter[int] = Counter()
        for r, row in enumerate(request.rows):
            rng = np.random.default_rng([self._seed, row.number])
            names.append([])
            line = Rendered(canvas.ids[r], canvas.labels[r], canvas.writers[r], canvas.loss_weights[r])
            at = 0
            seen.update(row.source.tolist())
            for d, (source, sample) in enumerate(zip(row.source.tolist(), row.sample.tolist(), strict=True)):
                try:
                    name, length = self._fill(source, sample, line, at, rng)
                except (BrokenSample, UserError) as error:
                    broken.append(Broken(source, sample, str(error)))
                    name, length = f"#{sample} (broken)", self._planned_length(source, sample)
                    self._blank(line[at : at + length])
                stop = at + length
                positions[r, at:stop] = self._count[:length]
                documents[r, at:stop] = d
                origins[r, at:stop] = source
                names[r].append(f"{self.sources[source].name}/{name}")
                at = stop
        batch = PackedBatch(
            input_ids=torch.from_numpy(canvas.ids.astype(np.int64)),
            labels=torch.from_numpy(canvas.labels),
            position_ids=torch.from_numpy(positions),
            document_ids=torch.from_numpy(documents),
            writers=torch.from_numpy(canvas.writers),
            loss_weights=torch.from_numpy(canvas.loss_weights) if self._weighted else None,
            divisor=request.divisor,
            sources=torch.from_numpy(origins),
            names=names,
            position=request.position,
        )
        return batch, Reading(dict(seen), broken)

    @cached_property
    def _count(self) -> np.ndarray:
        return np.arange(self._row_length)

    def _fill(self, source: int, sample: int, row: Rendered, at: int, rng: np.random.Generator) -> tuple[str, int]:
        """Renders one sample at `at` of a row; its name and length. An answer that is cut stops with the row."""
        read = self.sources[source].read(sample)
        length = self._renderer.length(read.turns)
        if at + length <= self._row_length:
            self._renderer.render_into(read.turns, row[at : at + length], rng)
            return read.id, length
        if at:
            raise BrokenSample(f"{read.id}: it has {length} tokens, more than its index says")
        whole = self._renderer.render(read.turns, rng)[: self._row_length]
        for name, column in vars(whole).items():
            getattr(row, name)[:] = column
        return read.id, self._row_length

    def _blank(self, part: Rendered) -> None:
        part.ids[:], part.labels[:] = self._renderer.vocabulary.pad, IGNORE_INDEX
        part.writers[:], part.loss_weights[:] = NOBODY, 0

    def _planned_length(self, source: int, sample: int) -> int:
        index, rule = self.sources[source].index, self._renderer.length_rule
        continuous = self._renderer.vocabulary.continuous_input
        return min(int(index.measure(rule, continuous, np.array([sample])).tokens[0]), self._row_length)
