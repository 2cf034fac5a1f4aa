"""Products of few rows with constant weight matrices, in the layout and with the kernels of a plan.

Decoding multiplies 1 to 11 rows by many weights, so it is bound by memory bandwidth and kernel efficiency. A weight is
stored in one layout, which determines the available kernels. `kernels` measures which of them to use.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Layout = Literal["rows", "columns", "packed"]
"""`rows`: as torch stores it; `columns`: its contiguous transpose; `packed`: oneDNN's blocks."""

TYPICAL_ROWS = 8
"""Number of rows that oneDNN's layout is packed for."""
SMALLEST = 1 << 16
"""Smaller weights stay in the CPU caches, where call overhead exceeds the time to read them."""


class Product(Protocol):
    """A product with a constant weight."""

    def __call__(self, x: Tensor) -> Tensor:
        """`(rows, inputs) -> (rows, outputs)`, contiguous."""
        ...

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """`total + product(x)`, in the memory of `total`."""
        ...


@dataclass(frozen=True)
class Kernel:
    """One way to multiply; only_rows: the only number of rows it supports."""

    run: Callable[[Any, Tensor | None, Tensor], Tensor]
    only_rows: int | None = None

    def __call__(self, memory: Any, bias: Tensor | None, x: Tensor) -> Tensor:
        return self.run(memory, bias, x)


def _linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


def _from_the_left(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    out = torch.mm(weight, x.t()) if bias is None else torch.addmm(bias[:, None], weight, x.t())
    return out.t().contiguous()


def _doubled(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Duplicates a single row: a product from the left with two columns can read weights faster than with one."""
    columns = torch.cat((x, x)).t()
    out = torch.mm(weight, columns) if bias is None else torch.addmm(bias[:, None], weight, columns)
    return out.select(1, 0).contiguous()[None]


def _transposed(columns: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return torch.mm(x, columns) if bias is None else torch.addmm(bias, x, columns)


def _direct(columns: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """oneDNN's product from a weight that is not in its layout: of several rows with a wide matrix, quicker than MKL's."""
    return _packed(columns.t(), bias, x)


def _packed(blocks: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocks, bias, "none", [], "")
    return out


KERNELS: dict[Layout, dict[str, Kernel]] = {
    "rows": {"linear": Kernel(_linear), "left": Kernel(_from_the_left), "doubled": Kernel(_doubled, only_rows=1)},
    "columns": {"transposed": Kernel(_transposed)},
}
if torch.backends.mkldnn.is_available():
    KERNELS["columns"]["direct"] = Kernel(_direct)
    KERNELS["packed"] = {"packed": Kernel(_packed)}
LAYOUTS: tuple[Layout, ...] = tuple(KERNELS)


def lay_out(weight: Tensor, layout: Layout) -> Tensor:
    """`weight: (outputs, inputs)` in the layout; `rows` shares the weight's memory."""
    if layout == "rows":
        return weight
    if layout == "columns":
        return weight.t().contiguous()
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.clone(), TYPICAL_ROWS)
    return packed


@dataclass(frozen=True)
class Plan:
    """kernels: `(rows, name)`, ascending; each kernel serves up to that many rows, the last one any number."""

    layout: Layout
    kernels: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, layout: Layout) -> "Plan":
        """The layout with its first kernel for all numbers of rows."""
        return cls(layout, ((1, next(iter(KERNELS[layout]))),))

    def check(self) -> None:
        """Raises KeyError or ValueError for an unknown layout or kernel."""
        kinds = [KERNELS[self.layout][name] for _, name in self.kernels]
        if not kinds or kinds[-1].only_rows:
            raise ValueError("a plan needs a kernel for any number of rows")


PLAIN = Plan.of("rows")


def can_lay_out(weight: Tensor, outputs: int | None = None) -> bool:
    """Whether layouts other than torch's own are worth measuring; outputs: of the weight with others below it."""
    size = weight.shape[1] * (len(weight) if outputs is None else outputs)
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and size >= SMALLEST


class PlannedProduct:
    """A weight `(outputs, inputs)` in the plan's layout, with a bias `(outputs,)`."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, plan: Plan = PLAIN):
        weight = weight.detach()
        self.outputs, self.inputs = weight.shape
        self.bias = None if bias is None else bias.detach()
        self.plan = plan
        # laid out outside inference mode, because an inference tensor cannot be used outside it later
        with torch.inference_mode(False), torch.no_grad():
            self._memory = lay_out(weight, plan.layout)
        kernels = KERNELS[plan.layout]
        self._by_rows: list[Kernel] = [kernels[plan.kernels[0][1]]]
        for rows, name in plan.kernels:
            self._by_rows += [kernels[name]] * (rows + 1 - len(self._by_rows))
        # the transpose for the in-place sum; None if the kernel has no such sum
        self._columns = {"rows": weight.t(), "columns": self._memory, "packed": None}[plan.layout]

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernel(x)(self._memory, self.bias, x)

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """`total + product(x)`, in the memory of `total: (rows, outputs)`."""
        kernel = self._kernel(x)
        if self._columns is None or self.bias is not None or kernel.run not in (_linear, _transposed):
            return total.add_(kernel(self._memory, self.bias, x))
        return total.addmm_(x, self._columns)

    def dense(self) -> Tensor:
        """The weight `(outputs, inputs)`; a view where the layout allows it."""
        if self.plan.layout == "packed":
            unpacked: Tensor = self._memory.to_dense()
            return unpacked
        return self._memory if self.plan.layout == "rows" else self._memory.t()

    def _kernel(self, x: Tensor) -> Kernel:
        rows = x.shape[0]
        return self._by_rows[rows] if rows < len(self._by_rows) else self._by_rows[-1]


class Float32Logits:
    """A product of 16-bit numbers on a GPU that keeps its float32 sums instead of rounding them to 16 bits.

    Near 20, where the largest logits are, bfloat16 has steps of an eighth, so ties would be common.
    """

    def __init__(self, weight: Tensor):
        self._weight = weight.detach()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self._weight.t(), out_dtype=torch.float32)

    def dense(self) -> Tensor:
        """The weight `(outputs, inputs)`."""
        return self._weight


VocabularyProduct = PlannedProduct | Float32Logits


def vocabulary_product(weight: Tensor, plan: Plan = PLAIN) -> VocabularyProduct:
    """Logits of the vocabulary's rows `weight: (tokens, hidden_size)`, in float32 on a GPU."""
    if weight.device.type == "cuda" and weight.dtype in (torch.bfloat16, torch.float16):
        return Float32Logits(weight)
    return PlannedProduct(weight, plan=plan)
