"""Distribution of the plan's rows over ranks and batches, with the divisor of each optimiser step."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from vita_audio_pl.data.plan import Change, Place, Plan
from vita_audio_pl.data.rows import EMPTY_ROW, BatchRequest, PlannedRow
from vita_audio_pl.errors import UserError


@dataclass(frozen=True)
class Geometry:
    """How a step is divided: `rows` per batch and rank, `accumulate` batches per step, `ranks`, this `rank`.

    If a step has fewer rows (`step`) than these batches hold, the last ones are empty: every rank runs as many batches,
    and empty rows have no labels.
    """

    rows: int
    accumulate: int = 1
    ranks: int = 1
    rank: int = 0
    step: int | None = None

    @property
    def rows_per_step(self) -> int:
        return self.rows * self.accumulate * self.ranks if self.step is None else self.step

    @property
    def rows_at_once(self) -> int:
        """Of one batch of all ranks."""
        return self.rows * self.ranks


@dataclass(frozen=True)
class Position:
    """Position of training in its data: everything that a checkpoint stores about it.

    Attributes:
        plan: fingerprint of the plan.
        ratios: ratio of each source in the first phase.
        place: the next row.
        rows: rows consumed so far, by all ranks.
        changes: changes of the ratios so far.
    """

    plan: str
    ratios: tuple[float, ...]
    place: Place = Place()
    rows: int = 0
    changes: tuple[Change, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for a checkpoint: tens of bytes."""
        state: dict[str, Any] = {
            "plan": self.plan,
            "rows": self.rows,
            **asdict(self.place),
            "ratios": list(self.ratios),
        }
        if self.changes:
            state["changes"] = [[c.epoch, c.window, list(c.ratios)] for c in self.changes]
        return state

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Position":
        """The inverse of `to_dict`.

        Raises:
            UserError: the state is not valid.
        """
        try:
            place = Place(**{field.name: int(state[field.name]) for field in fields(Place)})
            changes = tuple(Change(int(e), int(w), tuple(ratios)) for e, w, ratios in state.get("changes", ()))
            return cls(str(state["plan"]), tuple(state["ratios"]), place, int(state["rows"]), changes)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the data position in the checkpoint cannot be read ({error})") from error


class Parcels(torch.utils.data.Sampler[list[BatchRequest]]):
    """Batches in groups of `size`, each group one task of a worker."""

    def __init__(self, batches: Iterable[BatchRequest], size: int):
        self._batches, self._size = batches, size

    def __iter__(self) -> Iterator[list[BatchRequest]]:
        batches = iter(self._batches)
        while group := list(islice(batches, self._size)):
            yield group


class Schedule:
    """Endless batches of one rank, from a position on.

    A step takes the next `rows_per_step` rows of the plan; batch m of rank r takes those whose number within the batch
    is r modulo the ranks. The rows of a step, and their order, are therefore the same for any number of ranks.

    Args:
        plan: source of the rows.
        position: where to begin.
        geometry: how steps are divided.
        weights: loss weight of every sample of each source.
    """

    def __init__(self, plan: Plan, position: Position, geometry: Geometry, weights: Sequence[np.ndarray]):
        self._plan, self._geometry, self._weights = plan, geometry, weights
        self.planned = position  # how far the plan has been read; ahead of what was consumed

    def __iter__(self) -> Iterator[BatchRequest]:
        geometry = self._geometry
        rows = self._rows()
        while True:
            step = [next(rows) for _ in range(geometry.rows_per_step)]
            divisor = self._weight([row for row, _ in step])
            for number in range(geometry.accumulate):
                batch = step[number * geometry.rows_at_once :][: geometry.rows_at_once]
                mine = [row for row, _ in batch[geometry.rank :: geometry.ranks]]
                mine += [EMPTY_ROW] * (geometry.rows - len(mine))
                yield BatchRequest(mine, divisor, (batch or step)[-1][1].to_dict())

    def _rows(self) -> Iterator[tuple[PlannedRow, Position]]:
        for source, sample, place in self._plan.rows(self.planned.place):
            number = self.planned.rows
            self.planned = replace(self.planned, place=place, rows=number + 1, changes=tuple(self._plan.changes))
            yield PlannedRow(source, sample, number), self.planned

    def _weight(self, rows: Sequence[PlannedRow]) -> float:
        source, sample = np.concatenate([r.source for r in rows]), np.concatenate([r.sample for r in rows])
        total = 0.0
        for number in np.unique(source).tolist():
            total += float(self._weights[number][sample[source == number]].sum(dtype=np.float64))
        return total
