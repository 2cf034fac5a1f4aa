"""Products of few rows with constant weight matrices, in the layout and with the kernels of a plan.

Decoding multiplies 1 to 11 rows by many weights, so it is bound by memory bandwidth and kernel efficiency. A weight is
stored in one layout, which determines the available kernels. `kernels` measures which of them to use.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Layout = Literal["rows", "columns", "packed"]
"""`rows`: as torch stores it; `columns`: its contiguous transpose; `packed`: oneDNN's blocks."""

TYPICAL_ROWS = 8
"""Number of rows that oneDNN's layout is packed for."""
BLOCKS = (64, 48, 32, 16, 8)
"""Outputs of a block of that layout, as processors differ."""
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
    """One way to multiply.

    Attributes:
        run: `(weight in its layout, bias, x) -> product`.
        add: `(total, weight in its layout, x) -> total + product`, in the memory of `total`, if it can do both at once.
        only_rows: the only number of rows it supports.
    """

    run: Callable[[Any, Tensor | None, Tensor], Tensor]
    add: Callable[[Tensor, Any, Tensor], Tensor] | None = None
    only_rows: int | None = None

    def __call__(self, memory: Any, bias: Tensor | None, x: Tensor) -> Tensor:
        return self.run(memory, bias, x)


def _linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


def _add_linear(total: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    return total.addmm_(x, weight.t())


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


def _add_transposed(total: Tensor, columns: Tensor, x: Tensor) -> Tensor:
    return total.addmm_(x, columns)


def _onednn(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _direct(columns: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """oneDNN's product from a weight that is not in its layout: of several rows with a wide matrix, quicker than MKL's."""
    return _onednn(columns.t(), bias, x)


class Packed(NamedTuple):
    """A weight in oneDNN's layout.

    Attributes:
        opaque: the tensor that oneDNN's product takes.
        blocks: the same memory `(blocks, inputs, outputs of a block)`; None if it is laid out otherwise, or its last block
            is padded.
    """

    opaque: Tensor
    blocks: Tensor | None

    @classmethod
    def of(cls, weight: Tensor) -> "Packed":
        """weight: `(outputs, inputs)`."""
        opaque: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.clone(), TYPICAL_ROWS)
        return cls(opaque, _blocks(opaque, weight))


def _blocks(opaque: Tensor, weight: Tensor) -> Tensor | None:
    """`Packed.blocks`, by comparison with the weight: oneDNN chooses the layout by processor and shape."""
    if torch.ops.mkldnn._nbytes(opaque) != weight.nbytes:
        return None
    numbers = (ctypes.c_float * weight.numel()).from_address(torch.ops.mkldnn.data_ptr(opaque))
    numbers.owner = opaque  # type: ignore[attr-defined]  # whose memory lasts as long as any view of it
    memory = torch.from_numpy(np.ctypeslib.as_array(numbers))
    for outputs in BLOCKS:
        if weight.shape[0] % outputs == 0:
            blocks = memory.view(-1, weight.shape[1], outputs)
            if torch.equal(blocks.transpose(1, 2), weight.reshape(-1, outputs, weight.shape[1])):
                return blocks
    return None


def _packed(packed: Packed, bias: Tensor | None, x: Tensor) -> Tensor:
    return _onednn(packed.opaque, bias, x)


def _by_blocks(packed: Packed, bias: Tensor | None, x: Tensor) -> Tensor:
    """One row with each block, from oneDNN's memory but by MKL, whose products of one row are quicker."""
    if packed.blocks is None:
        return _packed(packed, bias, x)
    out = torch.bmm(x.expand(packed.blocks.shape[0], 1, -1), packed.blocks).view(1, -1)
    return out if bias is None else out.add_(bias)


def _add_by_blocks(total: Tensor, packed: Packed, x: Tensor) -> Tensor:
    if packed.blocks is None:
        return total.add_(_packed(packed, None, x))
    number, _, outputs = packed.blocks.shape
    return total.view(number, 1, outputs).baddbmm_(x.expand(number, 1, -1), packed.blocks).view(1, -1)


KERNELS: dict[Layout, dict[str, Kernel]] = {
    "rows": {
        "linear": Kernel(_linear, _add_linear),
        "left": Kernel(_from_the_left),
        "doubled": Kernel(_doubled, only_rows=1),
    },
    "columns": {"transposed": Kernel(_transposed, _add_transposed)},
}
if torch.backends.mkldnn.is_available():
    KERNELS["columns"]["direct"] = Kernel(_direct)
    KERNELS["packed"] = {"packed": Kernel(_packed), "blocks": Kernel(_by_blocks, _add_by_blocks, only_rows=1)}
LAYOUTS: tuple[Layout, ...] = tuple(KERNELS)


def lay_out(weight: Tensor, layout: Layout) -> Tensor | Packed:
    """`weight: (outputs, inputs)` in the layout; `rows` shares the weight's memory."""
    if layout == "rows":
        return weight
    return weight.t().contiguous() if layout == "columns" else Packed.of(weight)


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

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernel(x)(self._memory, self.bias, x)

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """`total + product(x)`, in the memory of `total: (rows, outputs)`."""
        kernel = self._kernel(x)
        if kernel.add is None or self.bias is not None:
            return total.add_(kernel(self._memory, self.bias, x))
        return kernel.add(total, self._memory, x)

    def dense(self) -> Tensor:
        """The weight `(outputs, inputs)`; a view where the layout allows it."""
        if isinstance(self._memory, Packed):
            unpacked: Tensor = self._memory.opaque.to_dense()
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
