"""Argmax over a large vocabulary, mostly without computing the logits in float32.

A product of one state with thousands of rows is bound by the memory bandwidth for the matrix, so an 8-bit copy is
multiplied first. Rounding weights and state moves a score w.x by at most |w - w'| |x| + |w'| |x - x'| (Cauchy-Schwarz),
so a row whose upper bound is below another row's lower bound cannot be the largest. The few remaining rows are
computed from the float32 weights, in float64, rounded to float32. The choice is therefore provably the largest float32
logit, the first of equal ones; it can differ from that of a float32 product only where two logits differ by less than
that product's own rounding.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from vita_audio_pl.inference.kernels import Kernels
from vita_audio_pl.inference.products import PlannedProduct, VocabularyProduct

NOT_FINITE = -1
"""Result for a row whose products are not finite."""

SMALLEST = 1 << 21
"""Smaller matrices fit the CPU caches, where screening saves nothing."""
NARROWEST = 32
"""Shorter states are not screened: the rounding allowance below assumes longer sums."""
LARGEST = 1e28
"""Matrices with larger values are not screened, because their products can exceed the range of float32."""
BLOCK = 32
"""Rows per block with a common bound, so that most rows are excluded by one comparison."""
MOST = 256
"""At most one row in this many may remain after screening; otherwise the full product is faster."""
LEVELS = 127
"""Quantisation steps from zero to a row's largest value."""
CHUNK = 4096
"""Rows quantised at a time."""


class Largest:
    """For each state `x`, the row of the vocabulary (or of a part of it) with the largest logit.

    Args:
        product: computes the logits.
        kernels: decides, at the first call, whether to keep an 8-bit copy (a quarter of the weight's memory) for
            screening. Only for large float32 weights on a CPU that multiplies 8-bit integers (VNNI).
    """

    def __init__(self, product: VocabularyProduct, kernels: Kernels):
        self._product, self._kernels = product, kernels
        self._screen: Screen | None = None
        self._decided = not can_screen(product)

    def __call__(self, x: Tensor) -> list[int]:
        """`x: (states, width)` -> a row number each, `NOT_FINITE` if a product is not finite."""
        if not self._decided:
            self._decide()
        rows = None if self._screen is None else self._screen(x)
        if rows is not None:
            return rows
        return _columns(self._product(x))

    def with_entropies(self, x: Tensor) -> tuple[list[int], list[float | None]]:
        """The same, and the entropy in nats of each state's distribution; None if only the screen was used."""
        if not self._decided:
            self._decide()
        rows = None if self._screen is None else self._screen(x)
        if rows is not None:
            return rows, [None] * len(rows)
        logits = self._product(x)
        chances = logits.float().softmax(-1)
        # the sum of -p log p, with log p = logit - largest logit + log(largest p)
        largest = chances.amax(-1)
        entropies = logits.amax(-1) - largest.log() - torch.linalg.vecdot(chances, logits.float())
        return _columns(logits), list(entropies.clamp_min(0).tolist())

    def _decide(self) -> None:
        self._decided = True
        weight = self._product.dense()
        if not float(weight.abs().max()) < LARGEST:  # also if there is a NaN
            return
        with torch.inference_mode(False), torch.no_grad():
            screen = Screen(weight)
            state = torch.randn(1, weight.shape[1], generator=torch.Generator().manual_seed(0))

        def whole() -> Tensor:
            return self._product(state).max(dim=-1).values

        if self._kernels.pays(f"screen:{weight.shape[0]}x{weight.shape[1]}", lambda: screen(state), whole):
            self._screen = screen


def can_screen(product: VocabularyProduct) -> bool:
    """Whether `Largest` could screen these products; a packed weight would have to be stored by rows, too."""
    if not isinstance(product, PlannedProduct) or product.plan.layout == "packed":
        return False
    weight = product.dense()
    fits = weight.numel() >= SMALLEST and weight.shape[1] >= NARROWEST and weight.dtype == torch.float32
    return fits and weight.device.type == "cpu" and has_integer_products()


def _columns(logits: Tensor) -> list[int]:
    best = logits.max(dim=-1)
    # the maximum of products that include a NaN is NaN, and NaN differs from itself
    found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [row if value == value else NOT_FINITE for value, row in found]


class Screen:
    """`weight` in 8 bits, one scale per row, and bounds of the rounding error."""

    def __init__(self, weight: Tensor):
        self._weight = weight
        n_rows, width = weight.shape
        count = -(-n_rows // BLOCK) * BLOCK
        integers = torch.empty(count, width, dtype=torch.int8)
        scales, lost, length = (torch.empty(count) for _ in range(3))
        longest = 0.0
        for start in range(0, count, CHUNK):
            # the last block is padded with the first row, which adds no new maximum
            numbers = torch.arange(start, min(start + CHUNK, count))
            rows = weight.index_select(0, torch.where(numbers < n_rows, numbers, 0)).double()
            scale = (rows.abs().amax(1) / LEVELS).clamp_min(1e-30).float()
            rounded = (rows / scale.double()[:, None]).round()
            at = slice(start, start + CHUNK)
            integers[at], scales[at] = rounded.to(torch.int8), scale
            rounded *= scale.double()[:, None]
            norm = torch.linalg.vector_norm(rows, dim=1)
            # generous allowance for float32 sums of `width` terms, here and in a float32 product, and for rounded scales
            lost[at] = 1.001 * torch.linalg.vector_norm(rows - rounded, dim=1) + width * 2.0**-22 * norm + 1e-35
            length[at] = 1.001 * torch.linalg.vector_norm(rounded, dim=1)
            longest = max(longest, float(norm.max()))
        self._lost, self._length = (bounds.view(-1, BLOCK).amax(1) for bounds in (lost, length))
        self._multiply = IntegerProduct(integers, scales)
        self._largest_input = 1e37 / (max(longest, 1e-30) * width**0.5)  # beyond it, float32 products can overflow

    def __call__(self, x: Tensor) -> list[int] | None:
        """Row with the largest product for each state; None if the screen leaves too many rows."""
        peak = x.abs().amax(1, keepdim=True)
        if not float(peak.max()) < self._largest_input:  # or not finite
            return None
        x_scaled = x * (LEVELS / peak.clamp_min(1e-30))
        rounded = x_scaled.round()
        scores = self._multiply(rounded).view(x.shape[0], -1, BLOCK)
        lost_of_x = torch.linalg.vector_norm(x_scaled - rounded, dim=1, keepdim=True)
        bound = torch.linalg.vector_norm(x_scaled, dim=1, keepdim=True) * self._lost + lost_of_x * self._length
        block_best = scores.amax(2)
        reached = (block_best - bound).amax(1)
        state, block = (block_best + bound >= reached[:, None]).nonzero().unbind(1)
        possible = scores[state, block] >= (reached[state] - bound[state, block])[:, None]
        hit, place = possible.nonzero().unbind(1)
        state, row = state[hit], block[hit] * BLOCK + place
        n_rows = self._weight.shape[0]
        if n_rows % BLOCK:
            real = row < n_rows
            state, row = state[real], row[real]
        if row.shape[0] > x.shape[0] * n_rows // MOST:
            return None
        exact = (self._weight[row].double() * x.double()[state]).sum(1).float()
        best = [(float("-inf"), NOT_FINITE)] * x.shape[0]
        for i, number, score in zip(state.tolist(), row.tolist(), exact.tolist(), strict=True):
            if score > best[i][0]:  # in ascending order, so the first of equal ones is kept
                best[i] = score, number
        return [number for _, number in best]


class IntegerProduct:
    """oneDNN's product of 8-bit integers with 32-bit sums: `x: (states, width)` of integers from -127 to 127."""

    ZERO = 128
    """oneDNN reads states as unsigned integers with this zero point."""

    def __init__(self, integers: Tensor, scales: Tensor):
        self._packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self._scales, self._zeros = scales, torch.zeros(len(scales), dtype=torch.int64)
        self.held = (self._packed, scales)  # the integers have been copied into oneDNN's layout
        self._run = torch.ops.onednn.qlinear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        """`(states, rows)` float32, each row multiplied by its scale."""
        unsigned = (x + self.ZERO).to(torch.uint8)
        packed, scales, zeros = self._packed, self._scales, self._zeros
        out: Tensor = self._run(
            unsigned, 1.0, self.ZERO, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return out


@lru_cache
def has_integer_products() -> bool:
    """Whether this CPU multiplies 8-bit integers quickly, and oneDNN without saturating the sum of two products."""
    capabilities: Callable[[], dict[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    if not any(capabilities().get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")):
        return False
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    with torch.inference_mode(False), torch.no_grad():
        random = torch.Generator().manual_seed(0)
        x, integers = (torch.randint(0, 2, (rows, 256), generator=random) * 254.0 - 127 for rows in (11, 64))
        x[0], integers[0] = 127, 127
        exact = x @ integers.t()  # below 2^24, so float32 holds them
        multiply = IntegerProduct(integers.to(torch.int8), torch.ones(64))
        return all(torch.equal(multiply(x[:rows]), exact[:rows]) for rows in (1, 11))
