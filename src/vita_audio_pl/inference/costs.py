"""Cost of a backbone pass and of a head pass on this machine, to decide how far to draft."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.kernels import clock
from vita_audio_pl.inference.rows import Span

if TYPE_CHECKING:
    from vita_audio_pl.inference.runtime import Runtime

REPETITIONS = 5
CONTEXT = 64
"""Context length of the timed passes, tokens."""
ROW_ON_A_GPU = 0.005
"""Cost of an additional row on a GPU, in passes: reading the weights dominates there."""


def pass_costs(runtime: "Runtime") -> PassCosts:
    """On a CPU measured once and stored with the kernel timings; on a GPU the weights that each pass reads."""
    if runtime.device.type != "cpu":
        vocabulary = runtime.vocab_size * runtime.hidden_size
        backbone = runtime.n_layers * runtime.weights_of_a_layer + vocabulary
        head = runtime.weights_of_a_head + vocabulary
        return PassCosts(backbone, ROW_ON_A_GPU * backbone, head, ROW_ON_A_GPU * head)
    vocabulary_size = f"{runtime.vocab_size}x{runtime.hidden_size}"
    shape = f"{runtime.n_layers}+{runtime.n_heads}x{runtime.weights_of_a_layer}, {vocabulary_size}"
    sizes = {
        name: plan.layout
        for name, plan in sorted(runtime.kernels.plans.items())
        # parts of the vocabulary come with constrained answers: before or after these costs are asked for
        if name.partition(":")[0] != "vocabulary" or name.endswith(f":{vocabulary_size}")
    }
    name = f"{shape}, {runtime.quantize or runtime.dtype}, {sizes}" + ("" if runtime.chained else ", parallel heads")
    return runtime.kernels.costs(name, lambda: measure_passes(runtime))


@torch.inference_mode()
def measure_passes(runtime: "Runtime") -> PassCosts:
    """Time passes over one row and over a full draft, interleaved; the minimum of several repetitions."""
    many = runtime.n_heads + 1
    cache = runtime.new_cache(slots=1, capacity=CONTEXT + many, n_heads=runtime.n_heads, window=CONTEXT + many)

    def work(predictor: int, count: int) -> Callable[[], object]:
        def run() -> object:
            rows = runtime.rows(predictor, [Span(0, CONTEXT, CONTEXT + count)], [0] * count)
            hidden = runtime.run(predictor, rows, cache)
            return runtime.largest(hidden if predictor == 0 else hidden[-1:])

        return run

    passes = {(p, count): work(p, count) for p in (0, 1) for count in (1, many)}
    seconds = dict.fromkeys(passes, float("inf"))
    now = clock()
    for _ in range(REPETITIONS):
        for key, run in passes.items():
            begun = now()
            run()
            seconds[key] = min(seconds[key], now() - begun)
    backbone, head = ((seconds[p, many] - seconds[p, 1]) / runtime.n_heads for p in (0, 1))
    return PassCosts(seconds[0, 1], max(0.0, backbone), seconds[1, 1], max(0.0, head))
