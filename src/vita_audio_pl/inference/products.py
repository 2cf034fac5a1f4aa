"""Products with weight matrices that are read over and over: packed once for the CPU's kernels, plain elsewhere.

Decoding multiplies few rows (1 to 11) by many weights. torch's float32 `F.linear` takes two to four times as long there
as oneDNN with weights laid out in its own blocks, which is what torch's compiler uses when it freezes a model.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""`(rows, inputs) -> (rows, outputs)`."""

TYPICAL_ROWS = 8
"""Rows that oneDNN's layout is chosen for."""
SMALLEST = 1 << 16
"""Weights of fewer numbers stay in the caches, and there oneDNN's 13 microseconds a call cost more than it saves."""


def product(weight: Tensor, bias: Tensor | None = None, *, pack: bool = True) -> Product:
    """`x -> x @ weight.T + bias` for `weight: (outputs, inputs)`.

    pack: keep a copy in the CPU kernel's layout where there is one (float32 on a CPU); the weights then take their
        memory twice unless the caller drops the original.
    """
    if pack and can_pack(weight):
        return PackedProduct(weight, bias)
    return PlainProduct(weight, bias)


def vocabulary_product(weight: Tensor, *, pack: bool = True) -> Product:
    """Logits of the vocabulary's rows `weight: (tokens, hidden_size)`: as `product`, in float32 on a GPU."""
    if weight.device.type == "cuda" and weight.dtype in (torch.bfloat16, torch.float16):
        return Float32Logits(weight)
    return product(weight, pack=pack)


def can_pack(weight: Tensor) -> bool:
    """Whether `PackedProduct` takes this weight."""
    on_cpu = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return on_cpu and weight.dtype == torch.float32 and weight.numel() >= SMALLEST


class PlainProduct:
    """`F.linear` with fixed weights."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Float32Logits:
    """A GPU's product of 16-bit numbers with the float32 sums that it makes anyway, not rounded to 16 bits at the end.

    Near 20, where the largest logits lie, bfloat16 has steps of an eighth, and ties would be common.
    """

    def __init__(self, weight: Tensor):
        self._columns = weight.detach().t()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self._columns, out_dtype=torch.float32)


class PackedProduct:
    """oneDNN's product with weights in its blocked layout; one or two rows go through a plain product from the left.

    Memory bandwidth decides for few rows, and there `weight @ x.T` with two columns reads the weights about twice as
    fast as either kernel does for one row, so a lone row is doubled.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self._column = None if self.bias is None else self.bias[:, None]
        # packed outside inference mode, because an inference tensor may not be used outside it later
        with torch.inference_mode(False), torch.no_grad():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.clone(), TYPICAL_ROWS)
        self._run = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        if rows > 2:
            result: Tensor = self._run(x, self._packed, self.bias, "none", [], "")
            return result
        columns = (torch.cat((x, x)) if rows == 1 else x).t()
        if self._column is None:
            out = torch.mm(self.weight, columns)
        else:
            out = torch.addmm(self._column, self.weight, columns)
        return out.select(1, 0).contiguous()[None] if rows == 1 else out.t().contiguous()
