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

FEW_ROWS = 4
"""oneDNN takes longer for one row of a wide matrix than for four, so fewer rows are padded to four there."""
WIDE = 4096


def product(weight: Tensor, bias: Tensor | None = None, *, pack: bool = True) -> Product:
    """`x -> x @ weight.T + bias` for `weight: (outputs, inputs)`.

    pack: keep a copy in the CPU kernel's layout where there is one (float32 on a CPU); the weights then take their
        memory twice unless the caller drops the original.
    """
    if pack and can_pack(weight):
        return PackedProduct(weight, bias)
    return PlainProduct(weight, bias)


def can_pack(weight: Tensor) -> bool:
    """Whether `PackedProduct` takes this weight."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


class PlainProduct:
    """`F.linear` with fixed weights."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class PackedProduct:
    """oneDNN's product with weights in its blocked layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        # an inference tensor would not do: the packed copy must outlive any inference_mode block
        with torch.inference_mode(False), torch.no_grad():
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().clone(), 8)
        self.bias = None if bias is None else bias.detach()
        self.wide = weight.shape[0] >= WIDE
        self._run = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        if self.wide and rows < FEW_ROWS:
            padded = x.new_zeros(FEW_ROWS, x.shape[1])
            padded[:rows] = x
            return self._run(padded, self.weight, self.bias, "none", [], "")[:rows]
        return self._run(x, self.weight, self.bias, "none", [], "")
