"""CUDA graphs of decoding passes: on a GPU, launching about 600 small kernels takes longer than running them.

Written for one H100-class GPU and not yet run on one: the CPU tests replay an imitated graph, the capture itself needs
a GPU (test marked `gpu`).
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.cache import Cache
from vita_audio_pl.inference.rows import Rows, Span
from vita_audio_pl.inference.runtime import AudioStates, Runtime
from vita_audio_pl.inference.shapes import Shape

SHORTEST_CONTEXT = 256
"""Context length, in keys, of the smallest graph."""
MOST_ROWS = 128
"""Larger passes run without a graph; their kernels take long enough to hide the launches."""


def context_lengths(capacity: int) -> list[int]:
    """Context lengths to capture graphs for: doubling, up to the whole cache.

    A pass then reads at most about twice the keys that it needs. For 7B and 4096 tokens all keys are 2 % of the
    weights, which every pass reads as well.
    """
    lengths = []
    length = SHORTEST_CONTEXT
    while 4 * length <= 3 * capacity:
        lengths.append(length)
        length *= 2
    return [*lengths, capacity]


class StaticRows(Rows):
    """Rows whose tensors keep their addresses while their contents change, with the context length rounded up."""

    def __init__(self, rows: Rows, last_key: int):
        self.__dict__.update(
            {k: v for k, v in vars(rows).items() if k not in ("into_grid", "out_of_grid", "mask", "last")}
        )
        self.last_key = last_key
        self.numbers = rows.numbers.clone()
        self.ids, self.slot_numbers, self.positions = self.numbers

    @property
    def sees_all(self) -> bool:
        return False  # the rounded-up context ends in entries that must be masked

    @property
    def in_one_piece(self) -> bool:
        return False  # cache indices change between replays

    @property
    def apart(self) -> bool:
        return False

    def fresh(self) -> "StaticRows":
        """The same tensors without cached derived ones, so that a capture records their computation too."""
        other = copy.copy(self)
        other.__dict__.pop("mask", None)
        return other


class Graph(Protocol):
    """Captured work."""

    def replay(self) -> None: ...


class CudaCapture:
    """Captures work as a CUDA graph; all graphs share one memory pool for intermediate results.

    Raises:
        UserError: the device is not a GPU.
    """

    def __init__(self, device: torch.device):
        if device.type != "cuda":
            raise UserError(f"CUDA graphs need a GPU, and the model is on {device}; leave graphs off")
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        """The graph, and the tensor that every replay writes the result of `work` into."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries initialise themselves in the first run, which cannot be captured
            work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads (a vocoder, a data loader) may allocate meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = work()
        return graph, result


@dataclass
class _Captured:
    graph: Graph
    rows: StaticRows
    hidden: Tensor
    turns: tuple[Tensor, ...]  # kept alive: the graph reads these tables, even if the runtime makes longer ones


class GraphedPasses:
    """Runs a runtime's passes as CUDA graphs if `prepare` captured them, and directly otherwise.

    A graph serves one shape of pass in which every sequence of the cache takes part. Prompts, and rounds in which
    sequences are out of step or have left, run without one.

    Args:
        runtime: on a GPU.
        cache: the cache that all passes use.

    Raises:
        UserError: the runtime is not on a GPU.
    """

    def __init__(self, runtime: Runtime, cache: Cache):
        self._runtime, self._cache = runtime, cache
        self._capture = CudaCapture(runtime.device)
        self._contexts = context_lengths(cache.capacity)
        self._captured: dict[tuple[Shape, int], _Captured] = {}

    @torch.inference_mode()
    def prepare(self, shapes: Collection[Shape]) -> None:
        """Capture passes at every context length, so that no answer waits for it later.

        The contents of the cache are preserved.
        """
        for shape in sorted(set(shapes)):
            for context in self._contexts:
                fits = shape.width * self._cache.slots <= MOST_ROWS and shape.predictor + shape.width <= context
                if fits and (shape, context) not in self._captured:
                    self._captured[shape, context] = self._captured_pass(shape, context)

    def run(self, predictor: int, rows: Rows, cache: Cache, audio: AudioStates | None = None) -> Tensor:
        """Like `Runtime.run`; the result of a captured pass is overwritten by the next one of the same shape."""
        captured = None
        if audio is None and rows.dense and rows.slots == cache.slots:
            context = next(length for length in self._contexts if length >= rows.last_key)
            captured = self._captured.get((Shape(predictor, rows.width), context))
        if captured is None:
            return self._runtime.run(predictor, rows, cache, audio)
        captured.rows.numbers.copy_(rows.numbers)
        captured.graph.replay()
        return captured.hidden

    def _captured_pass(self, shape: Shape, context: int) -> _Captured:
        predictor, width = shape
        spans = [Span(slot, context - width, context) for slot in range(self._cache.slots)]
        rows = StaticRows(self._runtime.rows(predictor, spans, [0] * (width * len(spans))), context)
        with self._cache.kept(context - width, context):
            graph, hidden = self._capture(lambda: self._runtime.run(predictor, rows.fresh(), self._cache))
        return _Captured(graph, rows, hidden, self._runtime.turns)
