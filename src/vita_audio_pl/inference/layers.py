"""The model's layers as decoding uses them: fused matrices, laid out for this machine, moved or shared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio_pl.inference.kernels import Kernels, Matrix
from vita_audio_pl.inference.products import PLAIN, PlannedProduct, Product, can_lay_out
from vita_audio_pl.inference.quantised_products import Numbers, quantised_product
from vita_audio_pl.models.families import DecoderLayer, RMSNorm, head_norms
from vita_audio_pl.models.heads import Head as TrainedHead
from vita_audio_pl.models.mctp import MCTPBlock
from vita_audio_pl.models.quantised import QuantisedLinear


class Norm:
    """RMSNorm with fixed weights.

    folded: omit the weights, because they are folded into the matrix that reads the result.
    """

    def __init__(self, norm: RMSNorm, folded: bool = False):
        weight, self._eps = norm.weight.detach(), norm.variance_epsilon
        self._weight, self._width = weight, weight.shape[-1]
        self._by_parts = _is_folded(weight)
        if self._by_parts:
            self._scaled = None if folded else weight * self._width**0.5
            self._floor = torch.tensor((self._eps * self._width) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        """`(rows, width) -> (rows, width)`."""
        if not self._by_parts:
            return F.rms_norm(x, (self._width,), self._weight, self._eps)
        # x / sqrt(mean(x^2) + eps) as sqrt(width) * x / hypot(|x|, sqrt(width * eps)): half the time on a CPU
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scaled = x / torch.hypot(length, self._floor)
        return scaled if self._scaled is None else scaled.mul_(self._scaled)


class HeadNorm:
    """RMSNorm of each query and key, before the rotary embedding (Qwen3).

    weight: `(query_heads + key_heads, head_size)`, the queries' first.
    """

    def __init__(self, weight: Tensor, eps: float):
        self._weight, self._eps = weight, eps

    def __call__(self, query_key: Tensor) -> None:
        """`(rows, heads, head_size)`, in place."""
        query_key.copy_(F.rms_norm(query_key, query_key.shape[-1:], None, self._eps)).mul_(self._weight)


def _is_folded(weight: Tensor) -> bool:
    """Whether norm weights are folded into matrices: not in 16 bits, where rounding would change the product."""
    return weight.dtype == torch.float32 and weight.device.type == "cpu"


def _with_norm(weight: Tensor, norm: RMSNorm) -> Tensor:
    """`weight: (outputs, width)` with the norm's weights folded in, for `Norm(folded=True)`."""
    scale = norm.weight.detach()
    return weight * (scale * scale.shape[-1] ** 0.5) if _is_folded(scale) else weight


def folds(layer: nn.Module) -> bool:
    """Whether a norm's weights may be folded into the matrix of a layer: quantised ones are what they were rounded to."""
    return not isinstance(layer, QuantisedLinear)


def layer_matrices(part: str, layer: DecoderLayer) -> list[Matrix]:
    """The matrices of a layer that `Layer.of` lays out."""
    attention, mlp = layer.self_attn, layer.mlp
    return [
        *_matrix(part, attention.q_proj, attention.k_proj, attention.v_proj),
        *_matrix(part, attention.o_proj),
        *_matrix(part, mlp.gate_proj, mlp.up_proj),
        *_matrix(part, mlp.down_proj),
    ]


def head_matrices(block: TrainedHead) -> list[Matrix]:
    """Those of a head."""
    if isinstance(block, MCTPBlock):
        return [*_matrix("heads", block.proj), *layer_matrices("heads", block.layer)]
    return _matrix("parallel", block.residual)


def _matrix(part: str, *linears: nn.Linear) -> list[Matrix]:
    """Of the weights one below the other; none where they are not laid out."""
    weights = [linear.weight for linear in linears if not isinstance(linear, QuantisedLinear)]
    outputs = sum(len(weight) for weight in weights)
    if not weights or not can_lay_out(weights[0], outputs):
        return []
    return [Matrix(part, outputs, weights[0].shape[1])]


class Weights:
    """Lays matrices out as `Kernels` chose, and removes them from the model if it is not needed any more."""

    def __init__(self, kernels: Kernels, n_heads: int, paired: int | None, release: bool, dtype: torch.dtype):
        self.kernels, self.n_heads, self.paired, self._release, self.dtype = kernels, n_heads, paired, release, dtype

    def product(self, part: str, weight: Tensor, bias: Tensor | None = None) -> PlannedProduct:
        plan = self.kernels.plan(Matrix(part, *weight.shape), self.n_heads) if can_lay_out(weight) else PLAIN
        return PlannedProduct(weight, bias, plan)

    def joined(self, part: str, linears: Sequence[nn.Linear], norm: RMSNorm | None = None, turned: int = 0) -> Product:
        """The product with the weights of several layers, one below the other.

        norm: whose weights are folded in, where they can be (see `folds`); turned: number of the first layers whose
        outputs are interleaved.
        """

        def stacked(name: str) -> Tensor:
            tensors = [cast(Tensor, getattr(linear, name)).detach() for linear in linears]
            tensors[:turned] = map(self.interleaved, tensors[:turned])
            return torch.cat(tensors) if len(tensors) > 1 else tensors[0]

        bias = None if linears[-1].bias is None else stacked("bias")
        first: nn.Module = linears[0]
        if isinstance(first, QuantisedLinear):
            zeros = None if first.zeros is None else stacked("zeros")
            held = Numbers(first.scheme, stacked("numbers"), stacked("scales"), zeros)
            return quantised_product(held, bias, self.dtype)
        weight = stacked("weight")
        return self.product(part, weight if norm is None else _with_norm(weight, norm), bias)

    def interleaved(self, tensor: Tensor) -> Tensor:
        """A weight, bias or norm of queries or keys, with the halves of each head's outputs interleaved if required.

        tensor: `(heads * head_size, ...)`.
        """
        if self.paired is None:
            return tensor
        return tensor[torch.arange(len(tensor)).view(-1, 2, self.paired // 2).transpose(1, 2).flatten()]

    def taken(self, module: nn.Module) -> None:
        """Mark a part of the model as laid out; its weights are freed unless they are shared."""
        if self._release:
            for part in module.modules():
                for name, parameter in part._parameters.items():
                    if parameter is not None:
                        part._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)


@dataclass(frozen=True)
class Layer:
    """Weights of one decoder layer, ready for decoding."""

    input_norm: Norm
    qkv: Product
    head_norm: HeadNorm | None
    output: Product
    mlp_norm: Norm
    gate_up: Product
    down: Product

    @classmethod
    def of(cls, layer: DecoderLayer, part: str, laid: Weights) -> "Layer":
        """part: `backbone` or `heads`."""
        attention, mlp = layer.self_attn, layer.mlp
        turned = attention.q_proj, attention.k_proj
        folded = folds(attention.v_proj)
        norms, head_norm = head_norms(layer), None
        if norms is not None:
            weights = [
                laid.interleaved(norm.weight.detach()).expand(projection.out_features // attention.head_dim, -1)
                for norm, projection in zip(norms, turned, strict=True)
            ]
            head_norm = HeadNorm(torch.cat(weights), norms[0].variance_epsilon)
        made = cls(
            Norm(layer.input_layernorm, folded),
            laid.joined(part, [*turned, attention.v_proj], layer.input_layernorm, turned=2),
            head_norm,
            laid.joined(part, [attention.o_proj]),
            Norm(layer.post_attention_layernorm, folded),
            laid.joined(part, [mlp.gate_proj, mlp.up_proj], layer.post_attention_layernorm),
            laid.joined(part, [mlp.down_proj]),
        )
        laid.taken(layer)
        return made


@dataclass(frozen=True)
class Head:
    """Weights of one MCTP block, ready for decoding."""

    embed_norm: Norm
    hidden_norm: Norm
    join: Product
    layer: Layer

    @classmethod
    def of(cls, block: MCTPBlock, laid: Weights) -> "Head":
        folded = folds(block.proj)
        if folded:
            embedded, hidden = block.proj.weight.detach().chunk(2, dim=1)
            both = torch.cat((_with_norm(embedded, block.embed_norm), _with_norm(hidden, block.hidden_norm)), dim=1)
        made = cls(
            Norm(block.embed_norm, folded),
            Norm(block.hidden_norm, folded),
            laid.product("heads", both) if folded else laid.joined("heads", [block.proj]),
            Layer.of(block.layer, "heads", laid),
        )
        laid.taken(block)
        return made


@dataclass(frozen=True)
class ParallelHead:
    """The same for one `models.parallel_heads.ParallelHead`."""

    residual: Product

    def __call__(self, hidden: Tensor) -> Tensor:
        """States of the backbone `(rows, hidden_size)` to states for the vocabulary."""
        return F.silu(self.residual(hidden)).add_(hidden)


def prepared_head(block: TrainedHead, laid: Weights) -> Head | ParallelHead:
    """A head ready for decoding."""
    if isinstance(block, MCTPBlock):
        return Head.of(block, laid)
    made = ParallelHead(laid.joined("parallel", [block.residual]))
    laid.taken(block)
    return made
