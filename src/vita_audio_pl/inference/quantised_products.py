"""Products with weights in 8 or 4 bits: the kernels of torch, oneDNN and torchao that decoding calls for them.

They compute what torchao's own tensors compute, which on a CPU copy the whole weight into floats at each call. `int4` multiplies
in bfloat16 on any device, as its kernels do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vita_audio_pl.inference.screening import IntegerProduct, has_integer_products
from vita_audio_pl.models.quantised import torchao, unpacked

BLOCK = 1 << 19
"""Numbers turned into floats at a time: their floats stay in a CPU's cache."""
ALIGNED = 16
"""Bytes of which rows of 8-bit numbers must begin at a multiple for torch's kernel."""
OUTPUTS_ON_CPU = 16
"""Outputs of a CPU's 4-bit kernel come in multiples of this."""
TILES = (8, 1024)
"""Outputs and inputs of a GPU's 4-bit kernel come in multiples of these."""
INNER_TILES = 8


@dataclass(frozen=True)
class Numbers:
    """A weight in few bits; the fields are those of `models.quantised.QuantisedLinear`."""

    scheme: str
    numbers: Tensor
    scales: Tensor
    zeros: Tensor | None = None

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return (2 if self.scheme == "int4" else 1) * self.numbers.shape[1] // self.scales.shape[1]


class QuantisedProduct:
    """A weight in few bits with a bias `(outputs,)`.

    Args:
        run: the product without bias, `(rows, inputs) -> (rows, outputs)`, in the type of the inputs.
        held: the tensors that it keeps.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], bias: Tensor | None, held: tuple[Tensor, ...]):
        self._run, self._bias, self.held = run, bias, held

    def __call__(self, x: Tensor) -> Tensor:
        """`(rows, inputs) -> (rows, outputs)`, contiguous."""
        out = self._run(x)
        return out if self._bias is None else out.add_(self._bias)

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """`total + product(x)`, in the memory of `total`."""
        return total.add_(self(x))


def quantised_product(weight: Numbers, bias: Tensor | None, dtype: torch.dtype) -> QuantisedProduct:
    """The quickest known kernel for the scheme on the weight's device.

    dtype: of the states that are multiplied.
    """
    on_cpu = weight.numbers.device.type == "cpu"
    if weight.scheme == "int4":
        run, held = (_four_bits if on_cpu else _four_bits_on_gpu)(weight)
    elif weight.scheme == "int8_dynamic" and on_cpu and has_integer_products():
        run, held = _integers(weight)
    elif weight.scheme == "int8" and on_cpu:
        run, held = _eight_bits(weight, dtype)
    else:
        run, held = _by_torchao(weight, dtype)
    return QuantisedProduct(run, bias, held)


_Product = tuple[Callable[[Tensor], Tensor], tuple[Tensor, ...]]


def _eight_bits(weight: Numbers, dtype: torch.dtype) -> _Product:
    numbers, scales = weight.numbers, weight.scales.flatten().to(dtype)
    if dtype == torch.bfloat16 and numbers.shape[1] % ALIGNED == 0:
        if (
            numbers.data_ptr() % ALIGNED
        ):  # weights mapped from a file lie anywhere, and torch 2.13's kernel crashes there
            numbers = numbers.clone()
        return lambda x: torch._weight_int8pack_mm(x, numbers, scales), (numbers, scales)
    rows = max(1, BLOCK // numbers.shape[1])

    def by_blocks(x: Tensor) -> Tensor:
        blocks = [torch.mm(x, block.to(dtype).t()) for block in numbers.split(rows)]
        return (torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0]).mul_(scales)

    return by_blocks, (numbers, scales)


def _integers(weight: Numbers) -> _Product:
    """Inputs rounded as torchao rounds them, row by row; integers are summed exactly."""
    multiply, steps = IntegerProduct(weight.numbers, weight.scales.flatten()), 127.5

    def run(x: Tensor) -> Tensor:
        wide = x.float()
        scale = wide.abs().amax(1, keepdim=True).div_(steps).clamp_min_(torch.finfo(torch.float32).eps)
        numbers = wide.mul(scale.reciprocal()).round_().clamp_(-128, 127)
        return multiply(numbers).mul_(scale).to(x.dtype)

    return run, multiply.held


def _four_bits(weight: Numbers) -> _Product:
    outputs, group = weight.numbers.shape[0], weight.group
    more = -outputs % OUTPUTS_ON_CPU
    numbers = F.pad(weight.numbers, (0, 0, 0, more))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unpacked(numbers).int(), 1)
    factors = F.pad(_factors(weight), (0, 0, 0, more))

    def run(x: Tensor) -> Tensor:
        narrow = x.to(torch.bfloat16).contiguous()
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(narrow, packed, group, factors).to(x.dtype)
        return out[:, :outputs].contiguous() if more else out

    return run, (packed, factors)


def _four_bits_on_gpu(weight: Numbers) -> _Product:
    """torchao's tensor for tensor cores, whose layout pads outputs and inputs; padded inputs are multiplied by zeros."""
    outputs, inputs = weight.numbers.shape[0], 2 * weight.numbers.shape[1]
    more_rows, more = -outputs % TILES[0], -inputs % TILES[1]
    numbers = F.pad(weight.numbers, (0, more // 2, 0, more_rows))
    packed = torch.ops.aten._convert_weight_to_int4pack(numbers, INNER_TILES)
    factors = F.pad(_factors(weight), (0, 0, 0, more_rows, 0, more // weight.group))
    tensor = torchao().Int4TilePackedTo4dTensor(packed, factors, [1, weight.group], torch.Size((outputs, inputs)))
    return lambda x: F.linear(x, tensor), (packed, factors)


def _factors(weight: Numbers) -> Tensor:
    """`(groups, outputs, 2)` bfloat16: the kernels compute `(number - 8) * scale + zero`."""
    assert weight.zeros is not None  # 4 bits have them
    zeros = (8 - weight.zeros.float()) * weight.scales
    return torch.stack((weight.scales, zeros), dim=-1).to(torch.bfloat16).transpose(0, 1).contiguous()


def _by_torchao(weight: Numbers, dtype: torch.dtype) -> _Product:
    ao = torchao()
    rounds_inputs = None
    if weight.scheme == "int8_dynamic":
        from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

        rounds_inputs = QuantizeTensorToInt8Kwargs(ao.PerRow())
    block = [1, weight.numbers.shape[1]]
    tensor = ao.Int8Tensor(weight.numbers, weight.scales, block, dtype, act_quant_kwargs=rounds_inputs)
    return lambda x: F.linear(x, tensor), (weight.numbers, weight.scales)
