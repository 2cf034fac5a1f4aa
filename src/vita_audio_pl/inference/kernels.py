"""Chooses the layout and kernel that multiply a matrix fastest with few rows; measured once per processor, then reused.

No kernel is best everywhere: for one row, `x @ W.T` from a contiguous transpose takes half of `F.linear`'s time on one
processor but is slower for four rows; oneDNN's packed layout wins only for eleven rows of wide matrices.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.products import KERNELS, LAYOUTS, Layout, Plan, lay_out
from vita_audio_pl.inference.shapes import row_counts
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.devices import processor
from vita_audio_pl.storage.files import write_json

FORMAT = 3
MEASURED_ROWS = (1, 2, 4, 8, 11, 32, 88)
"""Numbers of rows that are timed; another number goes by the next larger one of them."""
COLD_BYTES = 40 << 20
"""Copies of a matrix that are timed in turn, as a model's layers are: what stays in a cache would be timed wrongly."""
REPETITIONS = 6
PATIENCE = 0.1
"""Seconds after which a kernel is not timed again for one number of rows."""

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


PUBLISHED = tuple(Serving(DecodePattern.of(mode)) for mode in ("vanilla", "balance", "boost", "turbo"))
EVERYTHING = (*PUBLISHED, Serving(DecodePattern.of("turbo"), verifies=True))
"""The published modes and verification, one session at a time."""


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
        self._recorded: dict[str, Plan] = {}
        self._recorded_does: dict[str, bool] = {}
        self._recorded_passes: dict[str, PassCosts] = {}
        if self.choice != "auto" and self.choice not in LAYOUTS:
            self._recorded, self._recorded_does, self._recorded_passes = read_choices(Path(self.choice))

    def plan(self, part: str, outputs: int, inputs: int, n_heads: int, layouts: Sequence[Layout] = LAYOUTS) -> Plan:
        """The plan of a matrix `(outputs, inputs)` of a part of the model.

        layouts: that it may have.

        Raises:
            UserError: the recorded choices lack it.
        """
        name = f"{part}:{outputs}x{inputs}"
        if name not in self.plans:
            self.plans[name] = self._choose(name, part, (outputs, inputs), n_heads, layouts)
        return self.plans[name]

    def pays(self, name: str, one: Callable[[], object], other: Callable[[], object]) -> bool:
        """Whether `one` is to be done in place of `other`: what was recorded, or what is quicker now; a layout says no."""
        if name not in self.does:
            self.does[name] = self._recorded_does.get(name, False) if self.choice != "auto" else quicker(one, other)
        return self.does[name]

    def costs(self, name: str, measure_passes: Callable[[], PassCosts]) -> PassCosts:
        """Costs of passes: as recorded, as measured earlier on this machine, or measured now.

        Raises:
            UserError: costs are recorded, and none of that name.
        """
        if self._recorded_passes and name not in self._recorded_passes:
            raise UserError(
                f"kernels={self.choice} has no costs of passes for {name}: it was recorded with another model or quantize; record "
                "it again with the same quantize"
            )
        if name not in self.passes:
            recorded = self._recorded_passes.get(name)
            self.passes[name] = recorded or timings().passes(name, measure_passes)
        return self.passes[name]

    def record(self) -> dict[str, Any]:
        """What was chosen, and where; as a file, it can be given as `choice` again."""
        plans = {name: {"layout": plan.layout, "kernels": dict(plan.kernels)} for name, plan in self.plans.items()}
        passes = {name: asdict(costs) for name, costs in self.passes.items()}
        chosen = {"plans": plans, "does": dict(self.does), "passes": passes}
        return {"format": FORMAT, "choice": self.choice} | _place() | chosen

    def _choose(self, name: str, part: str, shape: tuple[int, int], n_heads: int, layouts: Sequence[Layout]) -> Plan:
        if self.choice in LAYOUTS:
            layout = self.choice if self.choice in layouts else layouts[0]
            return Plan.of(layout)
        if self._recorded:
            if name not in self._recorded:
                raise UserError(f"kernels={self.choice} has no choice for {name}: it was recorded with another model")
            return self._recorded[name]
        times = timings().of(*shape)
        return quickest(times, [use for serving in self.serves for use in serving.uses(part, n_heads)], layouts)


Times = Mapping[str, Mapping[int, float]]
"""Kernel -> number of rows -> seconds."""


def quickest(times: Times, uses: Sequence[RowCounts], layouts: Sequence[Layout]) -> Plan:
    """The layout whose slowest use is least behind what is best for that use, and the best kernel for each number of rows.

    uses: the rows that each mode multiplies; empty ones are left out.
    """
    best = {layout: _best_kernels(times, layout) for layout in layouts}
    costs = {
        layout: [sum(count * kernels[_measured(rows)][0] for rows, count in use.items()) for use in uses if use]
        for layout, kernels in best.items()
    }
    ideal = [min(column) for column in zip(*costs.values(), strict=True)]

    def behind(layout: Layout) -> float:
        return max((cost / least for cost, least in zip(costs[layout], ideal, strict=True)), default=1.0)

    layout = min(layouts, key=behind)
    return Plan(layout, tuple((rows, kernel) for rows, (_, kernel) in best[layout].items()))


def _best_kernels(times: Times, layout: Layout) -> dict[int, tuple[float, str]]:
    return {
        rows: min((times[kernel][rows], kernel) for kernel in KERNELS[layout] if rows in times.get(kernel, {}))
        for rows in MEASURED_ROWS
    }


def _measured(rows: int) -> int:
    return next((measured for measured in MEASURED_ROWS if rows <= measured), MEASURED_ROWS[-1])


class Timings:
    """Seconds of every kernel by shape of matrix, kept in a file of this processor, torch and number of threads.

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

    def of(self, outputs: int, inputs: int) -> Times:
        """Seconds of a product with a matrix of that shape, from the file or measured now."""
        name = f"{outputs}x{inputs}"
        if name not in self._times:
            self._times[name] = measure(outputs, inputs)
            self._write()
        return self._times[name]

    def passes(self, name: str, measure_passes: Callable[[], PassCosts]) -> PassCosts:
        """Costs of the passes of a model of that name, from the file or measured now."""
        if name not in self._passes:
            self._passes[name] = measure_passes()
            self._write()
        return self._passes[name]

    def _read(self) -> tuple[dict[str, dict[str, dict[int, float]]], dict[str, PassCosts]]:
        try:
            record = json.loads(self._file.read_text()) if self._file else {}
            if {key: record.get(key) for key in self._head} != self._head:
                return {}, {}
            times = {
                shape: {
                    kernel: {int(rows): float(s) for rows, s in by_rows.items()} for kernel, by_rows in kinds.items()
                }
                for shape, kinds in record["times"].items()
                if all(rows in map(int, kinds["linear"]) for rows in MEASURED_ROWS)
            }
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


_timings: dict[tuple[str, ...], Timings] = {}


def timings() -> Timings:
    """Those of this processor, torch and number of threads, in the person's folder for caches."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(home) / "vita_audio_pl" / "kernels" if os.path.isabs(home) else None
    key = (str(folder), *map(str, _place().values()))
    if key not in _timings:
        _timings[key] = Timings(folder)
    return _timings[key]


@torch.inference_mode(False)
@torch.no_grad()
def measure(outputs: int, inputs: int) -> dict[str, dict[int, float]]:
    """Seconds of every kernel for every number of rows, the least of some repetitions in turn."""
    now = clock()
    copies = max(1, min(64, COLD_BYTES // (4 * outputs * inputs)))
    matrices = [torch.full((outputs, inputs), 0.01) for _ in range(copies)]
    laid_out = {layout: [lay_out(matrix, layout) for matrix in matrices] for layout in LAYOUTS}
    del matrices
    at_a_time = max(1, copies // 4)
    times: dict[str, dict[int, float]] = {}
    at = 0
    for rows in MEASURED_ROWS:
        x = torch.full((rows, inputs), 0.01)
        spent: dict[str, float] = {}
        for _ in range(REPETITIONS):
            for layout, kernels in KERNELS.items():
                for name, kernel in kernels.items():
                    if spent.get(name, 0.0) > PATIENCE or (kernel.only_rows or rows) != rows:
                        continue
                    at += at_a_time
                    turn = [laid_out[layout][(at + i) % copies] for i in range(at_a_time)]
                    begun = now()
                    for memory in turn:
                        kernel(memory, None, x)
                    seconds = now() - begun
                    spent[name] = spent.get(name, 0.0) + seconds
                    by_rows = times.setdefault(name, {})
                    by_rows[rows] = min(by_rows.get(rows, seconds), seconds / at_a_time)
    return times


def quicker(one: Callable[[], object], other: Callable[[], object]) -> bool:
    """Whether `one` takes less time than `other`, by the least of some repetitions in turn."""
    now, least = clock(), [float("inf")] * 2
    for _ in range(2 * REPETITIONS):
        for place, work in enumerate((one, other)):
            begun = now()
            work()
            least[place] = min(least[place], now() - begun)
    return least[0] < least[1]


def read_choices(path: Path) -> tuple[dict[str, Plan], dict[str, bool], dict[str, PassCosts]]:
    """Choices that `Kernels.record` wrote, alone or under the key `kernels` of a result.

    Raises:
        UserError: they are not there, or not to be understood.
    """
    wrong = f"kernels={path} must be auto, one of {', '.join(LAYOUTS)}, or a JSON file with recorded choices"
    try:
        record = json.loads(path.read_text())
        record = record.get("kernels", record)
        if record.get("format") != FORMAT:  # before 3, costs were of lone passes
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
    return plans, does, passes


def clock() -> Callable[[], float]:
    """Seconds of this thread where it works alone, which other processes disturb less."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _place() -> dict[str, str | int]:
    return {
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
