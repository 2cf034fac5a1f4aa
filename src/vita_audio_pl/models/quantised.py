"""Linear layers whose weights are held in 8 or 4 bits, rounded by torchao.

`int8`, `int8_dynamic`: `w = numbers * scale`, one scale per output, numbers from -128 to 127. Under `int8_dynamic` the inputs
are rounded to 8 bits as well, each row by its own scale, so that the product is one of integers.
`int4`: `w = (numbers - zero) * scale`, numbers from 0 to 15, one scale and zero per group of 64 (or 32) inputs.

The linear layers of backbone and heads are held so, which are read once for each pass. Embeddings, the vocabulary layer, norms,
biases and the audio encoder keep their type.
"""

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio_pl.config.decoding import QUANTIZE
from vita_audio_pl.errors import UserError

if TYPE_CHECKING:
    from vita_audio_pl.models.speech_lm import SpeechLM

GROUPS = (64, 32)
"""Inputs that share a 4-bit scale: the first that divides the layer's width."""
KEPT = ("numbers", "scales", "zeros")
"""Parameters of a quantised layer, which no conversion of types touches."""


class QuantisedLinear(nn.Module):
    """A linear layer in few bits.

    Attributes:
        numbers: `(outputs, inputs)` int8; 4 bits: `(outputs, inputs / 2)` uint8, the even input in the upper half.
        scales: `(outputs, groups)` float32, one group in 8 bits.
        zeros: `(outputs, groups)` uint8 in 4 bits, else None.
        bias: `(outputs,)`, or None.

    Raises:
        UserError: 4 bits, and the width has no whole number of groups.
    """

    def __init__(self, scheme: str, outputs: int, inputs: int, bias: bool):
        super().__init__()
        self.scheme, self.out_features, self.in_features = scheme, outputs, inputs
        self.group = _group(inputs) if scheme == "int4" else inputs
        shape, groups = (outputs, inputs // 2 if scheme == "int4" else inputs), (outputs, inputs // self.group)
        held = torch.uint8 if scheme == "int4" else torch.int8
        self.numbers = nn.Parameter(torch.empty(shape, dtype=held), requires_grad=False)
        self.scales = nn.Parameter(torch.empty(groups, dtype=torch.float32), requires_grad=False)
        zeros = torch.empty(groups, dtype=torch.uint8) if scheme == "int4" else None
        self.zeros = None if zeros is None else nn.Parameter(zeros, requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False) if bias else None

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, scheme: str) -> "QuantisedLinear":
        """The layer with its weight rounded, on its device."""
        ao, weight = torchao(), linear.weight.detach()
        with torch.device("meta"):
            made = cls(scheme, weight.shape[0], weight.shape[1], linear.bias is not None)
        if scheme == "int4":
            four_bits = {"target_dtype": torch.uint8, "quant_min": 0, "quant_max": 15}
            scales, zeros = ao.choose_qparams_affine(
                weight.float(),
                ao.MappingType.ASYMMETRIC,
                (1, made.group),
                **four_bits,
                scale_dtype=torch.float32,
                zero_point_dtype=torch.uint8,
            )
            four_bits["output_dtype"] = four_bits.pop("target_dtype")
            numbers = ao.quantize_affine(weight.float(), (1, made.group), scales, zeros, **four_bits)
            made._set("zeros", zeros.view(made.scales.shape))
            made._set("numbers", numbers[:, ::2] << 4 | numbers[:, 1::2])
            made._set("scales", scales.view(made.scales.shape))
        else:
            rounded = ao.Int8Tensor.from_hp(weight, ao.PerRow())
            made._set("numbers", rounded.qdata)
            made._set("scales", rounded.scale)
        if linear.bias is not None:
            made.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        return made

    def dequantised(self) -> Tensor:
        """The weight `(outputs, inputs)` float32 that the numbers stand for."""
        if self.zeros is None:
            return self.numbers.float() * self.scales
        numbers = unpacked(self.numbers).view(self.out_features, -1, self.group).float()
        return ((numbers - self.zeros[..., None].float()) * self.scales[..., None]).view(self.out_features, -1)

    def forward(self, x: Tensor) -> Tensor:
        """The product with the rounded weight in the type of `x`; decoding has its own kernels (`inference`)."""
        return F.linear(x, self.dequantised().to(x.dtype), self.bias)

    def _set(self, name: str, value: Tensor) -> None:
        setattr(self, name, nn.Parameter(value.contiguous(), requires_grad=False))


def unpacked(numbers: Tensor) -> Tensor:
    """Two numbers in each byte `(outputs, bytes)` uint8 -> `(outputs, 2 * bytes)` uint8, from 0 to 15."""
    return torch.stack((numbers >> 4, numbers & 15), dim=-1).flatten(1)


def is_quantised_part(name: str) -> bool:
    """Whether a parameter's name is that of a number, scale or zero of a quantised layer."""
    return name.rpartition(".")[2] in KEPT


def linear_layers(model: "SpeechLM") -> list[str]:
    """Names of the linear layers that are quantised: all of backbone and heads."""
    inside = ("model.layers.", "heads.")
    return [name for name, part in model.named_modules() if name.startswith(inside) and isinstance(part, nn.Linear)]


def quantise(model: "SpeechLM", scheme: str) -> None:
    """Quantise the linear layers of a loaded model in place, one by one.

    Raises:
        UserError: an unknown scheme, a model that is quantised, or a width that 4 bits cannot hold.
    """
    check_scheme(model, scheme)
    for name in linear_layers(model):
        quantise_layer(model, name, scheme)
    model.config.quantize = scheme


def quantise_layer(model: "SpeechLM", name: str, scheme: str) -> None:
    """Quantise the linear layer of that name in place."""
    _replace(model, name, QuantisedLinear.of(cast(nn.Linear, model.get_submodule(name)), scheme))


def shape_quantised(model: "SpeechLM", scheme: str) -> None:
    """Make the linear layers of a new model on the meta device quantised ones, without weights."""
    for name in linear_layers(model):
        old = cast(nn.Linear, model.get_submodule(name))
        _replace(model, name, QuantisedLinear(scheme, old.out_features, old.in_features, old.bias is not None))


def check_scheme(model: "SpeechLM", scheme: str) -> None:
    """Refuse what `quantise` cannot do; the model may be on the meta device.

    Raises:
        UserError: see `quantise`.
    """
    if scheme not in QUANTIZE:
        raise UserError(f"quantize is '{scheme}'; it must be one of {', '.join(QUANTIZE)}")
    if model.config.quantize is not None:
        raise UserError(
            f"the model's weights are held in {model.config.quantize} already; leave quantize out, or start from the model that "
            "it was exported from"
        )
    for name in linear_layers(model):
        if scheme == "int4":
            _group(cast(nn.Linear, model.get_submodule(name)).in_features)
    torchao()


def refuse_quantised(model: "SpeechLM", folder: Any, what: str) -> None:
    """Refuse a model in few bits where exact weights are needed.

    Raises:
        UserError: it is one.
    """
    if model.config.quantize is not None:
        raise UserError(
            f"{folder} holds weights in {model.config.quantize}, which cannot be {what}; give the model that it was exported from"
        )


def torchao() -> Any:
    """torchao's quantisation.

    Raises:
        UserError: it is not installed.
    """
    try:
        import torchao.quantization as found
    except ImportError:
        raise UserError("quantize needs the package torchao; install vita-audio-pl[quantize]") from None
    return found


def _replace(model: "SpeechLM", name: str, layer: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, layer)


def _group(inputs: int) -> int:
    for group in GROUPS:
        if inputs % group == 0:
            return group
    raise UserError(f"int4 rounds {GROUPS[-1]} inputs together, and a layer has {inputs}; use int8")
