"""The model's layers as decoding uses them: fused matrices, laid out for this machine, moved or shared."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio_pl.inference.kernels import Kernels
from vita_audio_pl.inference.products import PLAIN, PlannedProduct, Product, can_lay_out
from vita_audio_pl.models.families import DecoderLayer, RMSNorm, head_norms
from vita_audio_pl.models.heads import Head as TrainedHead
from vita_audio_pl.models.mctp import MCTPBlock


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


class Weights:
    """Lays matrices out as `Kernels` chose, and removes them from the model if it is not needed any more."""

    def __init__(self, kernels: Kernels, n_heads: int, paired: int | None, release: bool):
        self.kernels, self.n_heads, self.paired, self._release = kernels, n_heads, paired, release

    def product(self, part: str, weight: Tensor, bias: Tensor | None = None) -> PlannedProduct:
        plan = self.kernels.plan(part, weight.shape[0], weight.shape[1], self.n_heads) if can_lay_out(weight) else PLAIN
        return PlannedProduct(weight, bias, plan)

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
        qkv_weight = torch.cat(
            [*(laid.interleaved(p.weight.detach()) for p in turned), attention.v_proj.weight.detach()]
        )
        qkv_bias, head_norm = None, None
        if attention.v_proj.bias is not None:
            qkv_bias = torch.cat([*(laid.interleaved(p.bias.detach()) for p in turned), attention.v_proj.bias.detach()])
        norms = head_norms(layer)
        if norms is not None:
            weights = [
                laid.interleaved(norm.weight.detach()).expand(projection.out_features // attention.head_dim, -1)
                for norm, projection in zip(norms, turned, strict=True)
            ]
            head_norm = HeadNorm(torch.cat(weights), norms[0].variance_epsilon)
        gate_up = torch.cat([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()])
        made = cls(
            Norm(layer.input_layernorm, folded=True),
            laid.product(part, _with_norm(qkv_weight, layer.input_layernorm), qkv_bias),
            head_norm,
            laid.product(part, attention.o_proj.weight, attention.o_proj.bias),
            Norm(layer.post_attention_layernorm, folded=True),
            laid.product(part, _with_norm(gate_up, layer.post_attention_layernorm)),
            laid.product(part, mlp.down_proj.weight),
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
        embedded, hidden = block.proj.weight.detach().chunk(2, dim=1)
        join = torch.cat((_with_norm(embedded, block.embed_norm), _with_norm(hidden, block.hidden_norm)), dim=1)
        made = cls(
            Norm(block.embed_norm, folded=True),
            Norm(block.hidden_norm, folded=True),
            laid.product("heads", join),
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
    made = ParallelHead(laid.product("parallel", block.residual.weight))
    laid.taken(block)
    return made
