"""Chooses the layout and kernel that multiply a matrix fastest with few rows; measured once per processor, then reused.

No kernel is best everywhere: for one row, `x @ W.T` from a contiguous transpose takes half of `F.linear`'s time on one
processor but is slower for four rows; oneDNN's layout wins for eleven rows of wide matrices, and for one only if its
blocks are multiplied by MKL. A mode is as slow as all its products together, so the matrices of a model are laid out
together.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vita_audio_pl.config.decoding import Sampling, drafting_decides
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.products import KERNELS, LAYOUTS, Layout, Plan
from vita_audio_pl.inference.shapes import row_counts
from vita_audio_pl.inference.trials import MEASURED_ROWS, Shape, Times, measure, quicker, timed_rows
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.devices import processor
from vita_audio_pl.storage.files import write_json

FORMAT = 4
ROUNDING = 1e-12
"""Of sums of seconds, relatively: combinations that differ by less are equally quick."""

REFUSED = 6.0
"""How often a share that is lost where all drafts are refused counts: verification promises to lose next to nothing there."""

RowCounts = Mapping[int, int]
"""Number of rows -> how often it comes."""


VANILLA = DecodePattern.of("vanilla")


class Serving(NamedTuple):
    """What a runtime is to be quick at."""

    pattern: DecodePattern
    verifies: bool = False
    sessions: int = 1

    def uses(self, part: str, n_heads: int) -> list[RowCounts]:
        """What the matrices of a part (see `row_counts`) meet; under verification if all drafts are kept, and if none is."""
        patterns = [(self.pattern, True), (VANILLA, False)] if self.verifies else [(self.pattern, False)]
        counts = [row_counts(pattern, n_heads, verifies)[part] for pattern, verifies in patterns]
        return [{rows * self.sessions: count for rows, count in use.items()} for use in counts]

    @property
    def weights(self) -> list[float]:
        """Of these uses."""
        return [1.0, REFUSED] if self.verifies else [1.0]


PUBLISHED = tuple(Serving(DecodePattern.of(mode)) for mode in ("vanilla", "balance", "boost", "turbo"))
EVERYTHING = (*PUBLISHED, Serving(DecodePattern.of("turbo"), verifies=True))
"""The published modes and verification, one session at a time."""


class Matrix(NamedTuple):
    """A matrix of a part of the model (see `row_counts`), and the layouts that it may have."""

    part: str
    outputs: int
    inputs: int
    layouts: tuple[Layout, ...] = LAYOUTS

    @property
    def name(self) -> str:
        return f"{self.part}:{self.shape}"

    @property
    def shape(self) -> Shape:
        return Shape(self.outputs, self.inputs)


@dataclass
class Kernels:
    """Chooses the plan of each matrix and remembers the choices, so that they can be written beside results.

    Args:
        choice: `auto` (measured), one of `LAYOUTS` (everywhere), or a JSON file with recorded choices.
        serves: what `auto` is to be quick at; the worst of them decides.

    Raises:
        UserError: the choice is unknown, or its file cannot be read.
    """

    choice: str = "auto"
    serves: Sequence[Serving] = EVERYTHING
    plans: dict[str, Plan] = field(default_factory=dict)
    does: dict[str, bool] = field(default_factory=dict)
    passes: dict[str, PassCosts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        recorded = self.choice != "auto" and self.choice not in LAYOUTS
        self._recorded = read_choices(Path(self.choice)) if recorded else None

    def plan(self, matrix: Matrix, n_heads: int) -> Plan:
        """The plan of a matrix: as chosen with others, or chosen now.

        Raises:
            UserError: the recorded choices lack it.
        """
        if matrix.name not in self.plans:
            self.choose([matrix], n_heads)
        return self.plans[matrix.name]

    def choose(self, matrices: Sequence[Matrix], n_heads: int) -> None:
        """Choose the plans of a pass's matrices together; those that have one keep it.

        Raises:
            UserError: the recorded choices lack one.
        """
        matrices = [matrix for matrix in matrices if matrix.name not in self.plans]
        if not matrices:
            return
        if self._recorded is not None:
            missing = [matrix.name for matrix in matrices if matrix.name not in self._recorded.plans]
            if missing:
                raise UserError(
                    f"kernels={self.choice} has no choice for {missing[0]}: it was recorded with another model"
                )
            plans = [self._recorded.plans[matrix.name] for matrix in matrices]
        elif self.choice in LAYOUTS:
            plans = [Plan.of(self.choice if self.choice in m.layouts else m.layouts[0]) for m in matrices]
        else:
            plans = self._quickest(matrices, n_heads)
        self.plans |= {matrix.name: plan for matrix, plan in zip(matrices, plans, strict=True)}

    def pays(self, name: str, one: Callable[[], object], other: Callable[[], object]) -> bool:
        """Whether `one` is to be done in place of `other`: what was recorded, or what is quicker now; a layout says no."""
        if name not in self.does:
            done = {} if self._recorded is None else self._recorded.does
            self.does[name] = done.get(name, False) if self.choice != "auto" else quicker(one, other)
        return self.does[name]

    def costs(self, name: str, measure_passes: Callable[[], PassCosts]) -> PassCosts:
        """Costs of passes: as recorded, as measured earlier on this machine, or measured now.

        Raises:
            UserError: costs are recorded, and none of that name.
        """
        costs = {} if self._recorded is None else self._recorded.passes
        if costs and name not in costs:
            raise UserError(
                f"kernels={self.choice} has no costs of passes for {name}: it was recorded with another model or quantize; record "
                "it again with the same quantize"
            )
        if name not in self.passes:
            self.passes[name] = costs.get(name) or timings().passes(name, measure_passes)
        return self.passes[name]

    def record(self) -> dict[str, Any]:
        """What was chosen, and where; as a file, it can be given as `choice` again."""
        plans = {name: {"layout": plan.layout, "kernels": dict(plan.kernels)} for name, plan in self.plans.items()}
        passes = {name: asdict(costs) for name, costs in self.passes.items()}
        chosen = {"plans": plans, "does": dict(self.does), "passes": passes}
        return {"format": FORMAT, "choice": self.choice} | _place() | chosen

    def _quickest(self, matrices: Sequence[Matrix], n_heads: int) -> list[Plan]:
        times = timings().of(Counter(matrix.shape for matrix in matrices))
        candidates = {}
        for matrix, count in Counter(matrices).items():
            uses = [use for serving in self.serves for use in serving.uses(matrix.part, n_heads)]
            in_a_pass = [{rows: count * often for rows, often in use.items()} for use in uses]
            candidates[matrix] = Candidate(times[matrix.shape], in_a_pass, matrix.layouts)
        weights = [weight for serving in self.serves for weight in serving.weights]
        plans = dict(zip(candidates, quickest(list(candidates.values()), weights), strict=True))
        return [plans[matrix] for matrix in matrices]


class Choices(NamedTuple):
    """What `Kernels` chose, of a file; see its fields."""

    plans: dict[str, Plan]
    does: dict[str, bool]
    passes: dict[str, PassCosts]


class Candidate(NamedTuple):
    """A matrix to be laid out.

    Attributes:
        uses: how often each mode multiplies it by each number of rows.
        layouts: to choose from.
    """

    times: Times
    uses: Sequence[RowCounts]
    layouts: Sequence[Layout]


def quickest(candidates: Sequence[Candidate], weights: Sequence[float]) -> list[Plan]:
    """Layouts with which the slowest mode is least behind what is best for it, and their best kernels by number of rows.

    weights: of each mode; the share that it is behind is multiplied by it.

    All combinations are compared: a matrix may serve one mode badly where the others make up for it. Where the slowest
    mode uses a matrix little or not at all, combinations tie, and of those the one that is best for all modes together is taken.
    """
    best = [{layout: _best_kernels(each.times, layout) for layout in each.layouts} for each in candidates]
    total = np.zeros(len(candidates[0].uses))  # (modes, layouts of the first matrix, of the second, ...)
    for each, kernels in zip(candidates, best, strict=True):
        seconds = [
            [sum(count * kernels[layout][_measured(rows)][0] for rows, count in use.items()) for layout in each.layouts]
            for use in each.uses
        ]
        total = total[..., None] + np.array(seconds).reshape(-1, *[1] * (total.ndim - 1), len(each.layouts))
    ideal = total.min(axis=tuple(range(1, total.ndim)), keepdims=True)
    ratios = total / np.maximum(ideal, 1e-12)  # a mode that uses none of them has 0 everywhere
    shares = 1 + (ratios - 1) * np.reshape(weights, (-1, *[1] * len(candidates)))
    behind = shares.max(axis=0)
    together = np.where(behind <= behind.min() * (1 + ROUNDING), shares.sum(axis=0), np.inf)
    chosen = np.unravel_index(int(together.argmin()), together.shape)
    layouts = [each.layouts[int(place)] for each, place in zip(candidates, chosen, strict=True)]
    return [
        Plan(layout, tuple((rows, kernel) for rows, (_, kernel) in kernels[layout].items()))
        for layout, kernels in zip(layouts, best, strict=True)
    ]


def _best_kernels(times: Times, layout: Layout) -> dict[int, tuple[float, str]]:
    return {
        rows: min((times[kernel][rows], kernel) for kernel in KERNELS[layout] if rows in times.get(kernel, {}))
        for rows in MEASURED_ROWS
    }


def _measured(rows: int) -> int:
    return next((measured for measured in MEASURED_ROWS if rows <= measured), MEASURED_ROWS[-1])


class Timings:
    """Seconds of every kernel by shape of matrix, in the pass of a model, kept in a file of this processor, torch and number of threads.

    Where the folder cannot be written they last as long as the process. Timings are a matter of speed alone, so a
    damaged file is measured again.
    """

    def __init__(self, folder: Path | None):
        place = _place()
        name = "-".join(str(value) for value in place.values())
        safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in name)
        self._file = None if folder is None else folder / f"{safe}.json"
        self._head: dict[str, str | int] = {"format": FORMAT, **place}
        self._times, self._passes = self._read()

    def of(self, counts: Mapping[Shape, int]) -> Mapping[Shape, Times]:
        """Seconds of products in a pass over so many matrices of each shape, from the file or measured now."""
        name = ", ".join(f"{count} {shape}" for shape, count in sorted(counts.items()))
        if self._times.get(name, {}).keys() != set(map(str, counts)):
            self._times[name] = {str(shape): times for shape, times in measure(counts).items()}
            self._write()
        return {shape: self._times[name][str(shape)] for shape in counts}

    def passes(self, name: str, measure_passes: Callable[[], PassCosts]) -> PassCosts:
        """Costs of the passes of a model of that name, from the file or measured now."""
        if name not in self._passes:
            self._passes[name] = measure_passes()
            self._write()
        return self._passes[name]

    def _read(self) -> tuple[dict[str, dict[str, Times]], dict[str, PassCosts]]:
        try:
            record = json.loads(self._file.read_text()) if self._file else {}
            if {key: record.get(key) for key in self._head} != self._head:
                return {}, {}
            times: dict[str, dict[str, Times]] = {
                name: {
                    shape: {kernel: {int(rows): float(s) for rows, s in by.items()} for kernel, by in kinds.items()}
                    for shape, kinds in shapes.items()
                }
                for name, shapes in record["times"].items()
            }
            times = {name: shapes for name, shapes in times.items() if all(map(_complete, shapes.values()))}
            return times, {name: PassCosts(**costs) for name, costs in record["passes"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}, {}

    def _write(self) -> None:
        if self._file is None:
            return
        times, passes = self._read()  # what other processes measured meanwhile
        self._times, self._passes = times | self._times, passes | self._passes
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            stored = {name: asdict(costs) for name, costs in self._passes.items()}
            write_json(self._file, self._head | {"times": self._times, "passes": stored})
        except OSError:
            self._file = None


def _complete(kinds: Times) -> bool:
    """Whether all kernels that there are now were timed, and for all numbers of rows, in seconds that can be."""
    return all(
        0 < kinds.get(name, {}).get(rows, 0) < float("inf")
        for kernels in KERNELS.values()
        for name, kernel in kernels.items()
        for rows in timed_rows(kernel)
    )


_timings: dict[tuple[str, ...], Timings] = {}


def timings() -> Timings:
    """Those of this processor, torch and number of threads, in the person's folder for caches."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(home) / "vita_audio_pl" / "kernels" if os.path.isabs(home) else None
    key = (str(folder), *map(str, _place().values()))
    if key not in _timings:
        _timings[key] = Timings(folder)
    return _timings[key]


def read_choices(path: Path) -> Choices:
    """Choices that `Kernels.record` wrote, alone or under the key `kernels` of a result; or of a benchmark of one setting.

    Raises:
        UserError: they are not there, or not to be understood.
    """
    wrong = f"kernels={path} must be auto, one of {', '.join(LAYOUTS)}, or a JSON file with recorded choices"
    try:
        record = json.loads(path.read_text())
        if "about" in record:  # of `benchmark what=decoding`
            found = record["about"]["kernels"]
            if len(found) != 1:
                raise UserError(
                    f"{wrong}; it has those of {len(found)} settings, one under each name in about.kernels: save one as a file, or "
                    "measure one mode alone"
                )
            [record] = found.values()
        record = record.get("kernels", record)
        if (
            record.get("format") != FORMAT
        ):  # before 3, costs were of lone passes; before 4, lone matrices were timed in the cache
            raise UserError(f"{wrong}; this one is of another version, so record it again")
        plans = {
            name: Plan(plan["layout"], tuple((int(rows), kernel) for rows, kernel in plan["kernels"].items()))
            for name, plan in record["plans"].items()
        }
        for plan in plans.values():
            plan.check()
        does = {str(name): bool(done) for name, done in record["does"].items()}
        passes = {str(name): PassCosts(**costs) for name, costs in record["passes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{wrong} ({error})") from None
    return Choices(plans, does, passes)


def check_kernels(choice: str, verify: str, sampling: Sampling, device: str) -> None:
    """Read a file of recorded choices before anything else is done; on a CPU it must fix costs where they decide the answer.

    Args:
        choice: `kernels`, which may be no file.

    Raises:
        UserError: as `read_choices`, or the file has no costs.
    """
    if choice in ("auto", *LAYOUTS):
        return
    if not read_choices(Path(choice)).passes and drafting_decides(verify, sampling) and not device.startswith("cuda"):
        raise UserError(
            f"kernels={choice} has no costs of passes, by which heads draft under verify={verify}: it was recorded without "
            "verification; give one that was recorded with it, or kernels=auto"
        )


def _place() -> dict[str, str | int]:
    return {
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
