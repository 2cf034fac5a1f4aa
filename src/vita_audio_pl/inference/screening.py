"""The row of a large matrix whose product with a state is largest, mostly without computing the others in float32.

One state times a vocabulary of thousands of rows takes as long as the memory takes to give the matrix, so a copy in 8 bits
is multiplied first. Rounding weights and state moves a score w.x by at most |w - w'| |x| + |w'| |x - x'| (Cauchy-Schwarz),
so a row whose upper bound stays below another row's lower bound cannot be the largest. The few rows that are left are
computed from the float32 weights, in float64, rounded to float32. The choice is therefore the largest float32 logit by
proof, the first of equal ones; it can differ from that of a float32 product only where two logits differ by that product's
own rounding.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from vita_audio_pl.inference.products import Product

NOT_FINITE = -1
"""Stands for a row where the products were not numbers."""

SMALLEST = 1 << 21
"""Matrices of fewer numbers are read from the caches, and screening would save nothing."""
NARROWEST = 32
"""States of fewer numbers are not screened: the allowance for rounding below is made for longer sums."""
LARGEST = 1e28
"""Matrices with larger numbers are not screened, for their products can leave float32's range."""
BLOCK = 32
"""Rows that share a bound, so that most of them are ruled out by one comparison."""
MOST = 256
"""One row in this many may be left after the screen; with more the whole product is quicker."""
LEVELS = 127
"""Steps from zero to a row's largest number."""
CHUNK = 4096
"""Rows that are rounded at a time."""


class Largest:
    """For each state `x`, the number of the row of `weight: (rows, width)` with the largest product.

    Args:
        weight: read again whenever torch counts a change of it; changes through `.data` are not counted.
        product: the whole product with it, for states and machines that cannot be screened.
        screened: whether to keep a copy in 8 bits, a quarter of the weight's memory, made at the first call. Without
            effect unless the weight is large, float32 and on a CPU that multiplies 8-bit integers (VNNI).
    """

    def __init__(self, weight: Tensor, product: Product, *, screened: bool = True):
        self._weight, self._product = weight.detach(), product
        self._screened = screened and can_screen(weight)
        self._screen: tuple[int, Screen | None] | None = None

    def __call__(self, x: Tensor) -> list[int]:
        """`x: (states, width)` -> a row number each, `NOT_FINITE` where a product is not a number."""
        screen = self._current() if self._screened else None
        rows = None if screen is None else screen(x)
        if rows is not None:
            return rows
        best = self._product(x).max(dim=-1)
        # the largest of products with a NaN among them is NaN, and NaN is not equal to itself
        found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [row if value == value else NOT_FINITE for value, row in found]

    def _current(self) -> "Screen | None":
        version = self._weight._version
        if self._screen is None or self._screen[0] != version:
            with torch.inference_mode(False), torch.no_grad():
                usual = float(self._weight.abs().max()) < LARGEST  # not so where there is a NaN
                self._screen = version, Screen(self._weight) if usual else None
        return self._screen[1]


def can_screen(weight: Tensor) -> bool:
    """Whether `Largest` screens products with this weight."""
    fits = weight.numel() >= SMALLEST and weight.shape[1] >= NARROWEST and weight.dtype == torch.float32
    # an inference tensor does not count its changes
    return fits and weight.device.type == "cpu" and not weight.is_inference() and has_integer_products()


class Screen:
    """`weight` in 8 bits, one scale per row, and bounds of what that rounds away."""

    def __init__(self, weight: Tensor):
        self._weight = weight
        n_rows, width = weight.shape
        count = -(-n_rows // BLOCK) * BLOCK
        integers = torch.empty(count, width, dtype=torch.int8)
        scales, lost, length = (torch.empty(count) for _ in range(3))
        longest = 0.0
        for start in range(0, count, CHUNK):
            # the last block is filled with the first row, which adds no new maximum
            numbers = torch.arange(start, min(start + CHUNK, count))
            rows = weight.index_select(0, torch.where(numbers < n_rows, numbers, 0)).double()
            scale = (rows.abs().amax(1) / LEVELS).clamp_min(1e-30).float()
            rounded = (rows / scale.double()[:, None]).round()
            at = slice(start, start + CHUNK)
            integers[at], scales[at] = rounded.to(torch.int8), scale
            rounded *= scale.double()[:, None]
            norm = torch.linalg.vector_norm(rows, dim=1)
            # float32 sums of `width` terms, here and in a float32 product, and the scales' rounding: with much to spare
            lost[at] = 1.001 * torch.linalg.vector_norm(rows - rounded, dim=1) + width * 2.0**-22 * norm + 1e-35
            length[at] = 1.001 * torch.linalg.vector_norm(rounded, dim=1)
            longest = max(longest, float(norm.max()))
        self._lost, self._length = (bounds.view(-1, BLOCK).amax(1) for bounds in (lost, length))
        self._multiply = IntegerProduct(integers, scales)
        self._largest_input = 1e37 / (max(longest, 1e-30) * width**0.5)  # beyond it, float32 products can overflow

    def __call__(self, x: Tensor) -> list[int] | None:
        """Number of the row with the largest product for each state; None where the screen leaves too many."""
        peak = x.abs().amax(1, keepdim=True)
        if not float(peak.max()) < self._largest_input:  # or not a number
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
            if score > best[i][0]:  # in ascending order, so the first of equal ones stays
                best[i] = score, number
        return [number for _, number in best]


class IntegerProduct:
    """oneDNN's product of 8-bit integers with sums in 32 bits: `x: (states, width)` of whole numbers from -127 to 127."""

    ZERO = 128
    """oneDNN reads states as unsigned numbers with this one as zero."""

    def __init__(self, integers: Tensor, scales: Tensor):
        self._packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self._scales, self._zeros = scales, torch.zeros(len(scales), dtype=torch.int64)
        self._run = torch.ops.onednn.qlinear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        """`(states, rows)` float32, each row times its scale."""
        unsigned = (x + self.ZERO).to(torch.uint8)
        packed, scales, zeros = self._packed, self._scales, self._zeros
        out: Tensor = self._run(
            unsigned, 1.0, self.ZERO, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return out


@lru_cache
def has_integer_products() -> bool:
    """Whether this CPU multiplies 8-bit integers quickly, and oneDNN without letting sums of two of them saturate."""
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
