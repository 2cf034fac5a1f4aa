"""CUDA graphs of decoding passes: on a GPU, launching some 600 small kernels costs more than running them.

Written for one H100-class GPU and not yet run on one: the CPU tests cover the static rows that a graph is captured with,
the capture itself needs a GPU (test marked `gpu`).
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.cache import Cache
from vita_audio_pl.inference.rows import Rows
from vita_audio_pl.inference.runtime import Heard, Runtime

KEYS_PER_GRAPH = 256
"""Lengths of context are rounded up to a multiple of this, so that one graph serves many of them."""
MOST_ROWS = 128
"""Larger passes (prompts) run without a graph; there the kernels are large enough."""


class StaticRows(Rows):
    """Rows whose tensors stay where they are while their contents change, and whose context is rounded up."""

    def __init__(self, rows: Rows, capacity: int):
        self.__dict__.update(
            {k: v for k, v in vars(rows).items() if k not in ("into_grid", "out_of_grid", "mask", "last")}
        )
        self.last_key = min(-(-rows.last_key // KEYS_PER_GRAPH) * KEYS_PER_GRAPH, capacity)
        self.numbers = rows.numbers.clone()
        self.ids, self.slot_numbers, self.positions = self.numbers

    @property
    def sees_all(self) -> bool:
        return False  # the rounded-up context always ends in places to be masked

    def fresh(self) -> "StaticRows":
        """The same tensors without what was derived from them, so that a capture records the deriving too."""
        other = copy.copy(self)
        other.__dict__.pop("mask", None)
        return other

    def key(self, predictor: int) -> tuple[int, ...]:
        """Passes with equal keys can be replayed from one graph."""
        return (predictor, self.first_slot, self.slots, self.width, self.last_key)


@dataclass
class _Captured:
    graph: "torch.cuda.CUDAGraph"
    rows: StaticRows
    hidden: Tensor
    angles: tuple[
        Tensor, Tensor
    ]  # kept alive: the graph reads them where they are, even if the runtime makes longer ones


class GraphedPasses:
    """Runs a runtime's passes as CUDA graphs, captured when their shape is first seen.

    Args:
        runtime: on a GPU.

    Raises:
        UserError: it is not on a GPU.
    """

    def __init__(self, runtime: Runtime):
        if runtime.device.type != "cuda":
            raise UserError(f"CUDA graphs need a GPU, and the model is on {runtime.device}; leave graphs off")
        self._runtime = runtime
        self._captured: dict[tuple[int, ...], _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, predictor: int, rows: Rows, cache: Cache, heard: Heard | None = None) -> Tensor:
        """As `Runtime.run`; the result is overwritten by the next pass of the same shape."""
        if heard is not None or not rows.dense or rows.total > MOST_ROWS:
            return self._runtime.run(predictor, rows, cache, heard)
        static = StaticRows(rows, cache.capacity)
        key = static.key(predictor)
        if key not in self._captured:
            self._captured[key] = self._capture(predictor, static, cache)
        captured = self._captured[key]
        captured.rows.numbers.copy_(rows.numbers)
        captured.graph.replay()
        return captured.hidden

    def _capture(self, predictor: int, rows: StaticRows, cache: Cache) -> _Captured:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up in a first run, which may not be captured
            self._runtime.run(predictor, rows.fresh(), cache)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            hidden = self._runtime.run(predictor, rows.fresh(), cache)
        return _Captured(graph, rows, hidden, self._runtime.angles)
