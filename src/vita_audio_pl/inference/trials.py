"""Times kernels as a pass uses them: one matrix after the other, with a pass's small operations in between.

In a loop of its own a kernel finds its code and its matrix in the caches. oneDNN's then takes 38 microseconds for one row
of 256 x 256 where it takes 68 in a pass; a plain product takes 36 in both (AMD EPYC, Zen 4).
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from statistics import median
from time import perf_counter as now
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vita_audio_pl.inference.products import KERNELS, Kernel, Plan, PlannedProduct

MEASURED_ROWS = (1, 2, 4, 8, 11, 16, 32, 88)
"""Numbers of rows that are timed; another number goes by the next larger one of them."""
MOST_BYTES = 128 << 20
"""Matrices of a trial, at most (but one of each shape): more than most caches hold, as in the pass of a large model."""
LONE_BYTES = 40 << 20
"""Copies of a matrix that is timed without its pass: in the pass, others drive it out of the caches."""
ROUNDS = 3
"""Of all kernels, each after the other: a shared machine is slower for a second or two, which is one layout's whole time."""
REPETITIONS = 2
PATIENCE, PATIENCE_OF_ROUNDS = 0.3, 10.0
"""Seconds of a pass after which it is not repeated, and of a round."""


class Shape(NamedTuple):
    """Of a matrix."""

    outputs: int
    inputs: int

    def __str__(self) -> str:
        return f"{self.outputs}x{self.inputs}"


Times = Mapping[str, Mapping[int, float]]
"""Kernel -> number of rows -> seconds."""


def measure(counts: Mapping[Shape, int]) -> dict[Shape, dict[str, dict[int, float]]]:
    """Seconds of a product with a matrix of each shape by every kernel, for every number of rows, in a pass over them all.

    counts: matrices of each shape in a pass.
    """
    with torch.inference_mode(False), torch.no_grad():
        sequence = _sequence(counts)
        times: dict[Shape, dict[str, dict[int, float]]] = {shape: {} for shape in counts}
        for _ in range(ROUNDS):
            begun = now()
            for layout, kernels in KERNELS.items():
                for name, kernel in kernels.items():
                    for rows, found in _passes(Plan(layout, ((1, name),)), sequence, timed_rows(kernel)).items():
                        for shape, seconds in found.items():
                            by_rows = times[shape].setdefault(name, {})
                            by_rows[rows] = min(seconds, by_rows.get(rows, seconds))
            if now() - begun > PATIENCE_OF_ROUNDS:
                break
    return times


def timed_rows(kernel: Kernel) -> Sequence[int]:
    """Numbers of rows that a kernel is timed with."""
    return [kernel.only_rows] if kernel.only_rows else MEASURED_ROWS


def _sequence(counts: Mapping[Shape, int]) -> list[Shape]:
    """The matrices of a pass in turn, or as large a share of each shape's as is allowed; copies of one that comes alone."""
    size = sum(4 * shape.outputs * shape.inputs * count for shape, count in counts.items())
    held = {shape: max(1, min(count, count * MOST_BYTES // size)) for shape, count in counts.items()}
    if sum(counts.values()) == 1:
        held = {shape: ceil(LONE_BYTES / size) for shape in counts}
    places = [((n + 0.5) / count, shape) for shape, count in held.items() for n in range(count)]
    return [shape for _, shape in sorted(places)]


def _passes(plan: Plan, sequence: list[Shape], served: Iterable[int]) -> dict[int, dict[Shape, float]]:
    """Seconds by number of rows; the matrices are held once, and no longer than this."""
    products = [(shape, PlannedProduct(_weight(shape), None, plan)) for shape in sequence]
    return {rows: _least(products, rows) for rows in served}


def _weight(shape: Shape) -> torch.Tensor:
    """Of different numbers, by which a kernel can tell how they are laid out."""
    return torch.linspace(0.01, 0.02, shape.outputs * shape.inputs).view(shape)


def _least(products: list[tuple[Shape, PlannedProduct]], rows: int) -> dict[Shape, float]:
    """Median seconds of a shape's products in a pass, the least of some passes.

    By the wall clock: reading a thread's own enters the system, after which oneDNN's products take longer than in a pass. Other
    processes disturb some of a pass's products, not the middle one.
    """
    between = _Between(rows)
    inputs = {width: torch.full((rows, width), 0.01) for shape, _ in products for width in shape}
    least: dict[Shape, float] = {}
    for _ in range(REPETITIONS):
        spent: dict[Shape, list[float]] = {}
        for shape, product in products:
            x, total = between(inputs[shape.inputs]), inputs[shape.outputs]
            # those that narrow are what a layer adds to its residual stream
            adds = shape.outputs <= shape.inputs
            begun = now()
            product.add_to(total, x) if adds else product(x)
            spent.setdefault(shape, []).append(now() - begun)
        for shape, seconds in spent.items():
            middle = median(seconds)
            least[shape] = min(middle, least.get(shape, middle))
        if sum(map(sum, spent.values())) > PATIENCE:
            break
    return least


class _Between:
    """What stands between the products of a layer, in small: a norm, attention to 64 keys, an activation."""

    def __init__(self, rows: int):
        self._query, self._keys = torch.ones(1, 2, rows, 64), torch.ones(1, 2, 64, 64)

    def __call__(self, x: Tensor) -> Tensor:
        F.scaled_dot_product_attention(self._query, self._keys, self._keys)
        self._keys[0, :, :1].copy_(self._query[0, :, :1])
        F.silu(x).mul_(x)
        normed: Tensor = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).add_(1e-6)
        return normed


def quicker(one: Callable[[], object], other: Callable[[], object]) -> bool:
    """Whether `one` takes less time than `other`, by the least of some repetitions in turn."""
    seconds, least = clock(), [float("inf")] * 2
    for _ in range(2 * ROUNDS * REPETITIONS):
        for place, work in enumerate((one, other)):
            begun = seconds()
            work()
            least[place] = min(least[place], seconds() - begun)
    return least[0] < least[1]


def clock() -> Callable[[], float]:
    """Seconds of this thread where it works alone, which other processes disturb less."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
