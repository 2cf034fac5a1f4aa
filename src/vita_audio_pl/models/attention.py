"""Attention within documents of a packed row, in four kernels, behind transformers' attention interface.

Layers of transformers call the function that `config._attn_implementation` names. `packed_documents`, registered here,
takes the documents of the packed row as the keyword argument `documents`. Without that argument it falls back to
transformers' plain sdpa with the given mask, which decoding with a cache needs.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.layout import Documents, to_device

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

IMPLEMENTATION = "packed_documents"
KERNELS = ("per_document", "sdpa", "flex", "flash")

# fastest on an H100, but it plans every new shape again (tens of ms on the host), and packed rows rarely repeat a shape
torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass(frozen=True)
class DocumentAttention:
    """Causal attention inside each document of a packed row.

    kernel: `per_document` (sdpa's causal kernel, one call for each document, any device), `sdpa` (one call with a
    block-diagonal mask: quadratic in the row), `flex` and `flash` (GPU; torch's flex and variable-length kernels, the
    latter in 16 bits).
    """

    documents: Documents
    kernel: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """`query`: (1, heads, rows, size), `key` and `value`: (1, kv_heads, rows, size) -> (1, rows, heads, size).

        Queries and keys are taken in the type of the values: under autocast, rotation leaves them in float32.

        Raises:
            UserError: `flash` in another type than bfloat16 or float16.
        """
        out: Tensor = getattr(self, f"_{self.kernel}")(query.to(value.dtype), key.to(value.dtype), value, scale)
        return out

    def _per_document(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        lengths = self.documents.lengths
        if len(set(lengths)) == 1 and len(lengths) > 1:
            return _equal_documents(query, key, value, scale, len(lengths))
        pieces = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
        return torch.cat([_causal(q, k, v, scale).transpose(1, 2) for q, k, v in pieces], dim=1)

    def _sdpa(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        # no fused kernel takes both a mask and shared keys
        key, value = (_for_each_head(tensor, query.shape[1]) for tensor in (key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask, scale=scale).transpose(1, 2)

    def _flex(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        gqa = query.shape[1] != key.shape[1]
        attend = _flex_attention(query.is_cuda)
        out: Tensor = attend(query, key, value, block_mask=self.block_mask, scale=scale, enable_gqa=gqa).transpose(1, 2)
        return out

    def _flash(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        from torch.nn.attention import varlen

        if value.dtype not in (torch.bfloat16, torch.float16):
            raise UserError(
                f"attention 'flash' computes in 16 bits, and this model in {str(value.dtype).removeprefix('torch.')}; "
                "train with trainer.precision=bf16-mixed, or choose 'per_document'"
            )
        if flash_shares_keys():
            shared: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]}
        else:
            shared, (key, value) = {}, (_for_each_head(tensor, query.shape[1]) for tensor in (key, value))
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        ends, longest = self.boundaries, self.documents.longest
        out = varlen.varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=(-1, 0), **shared)
        return cast(Tensor, out)[None]  # torch returns a tuple only if more than the output is requested

    @cached_property
    def boundaries(self) -> Tensor:
        return to_device(self.documents.boundaries, self.device)

    @cached_property
    def numbers(self) -> Tensor:
        return to_device(self.documents.numbers, self.device)

    @cached_property
    def mask(self) -> Tensor:
        """Block-diagonal causal mask, `(1, 1, rows, rows)` bool."""
        same = self.numbers[:, None] == self.numbers[None, :]
        return same.tril()[None, None]

    @cached_property
    def block_mask(self) -> "BlockMask":
        from torch.nn.attention.flex_attention import create_block_mask

        numbers, rows = self.numbers, self.documents.total

        def visible(batch: Tensor, head: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            return (q >= kv) & (numbers[q] == numbers[kv])

        return create_block_mask(visible, None, None, rows, rows, device=self.device)


@lru_cache(maxsize=1)
def flash_shares_keys() -> bool:
    """Whether torch's variable-length kernel supports grouped-query attention (2.13 does) or needs keys repeated."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _for_each_head(tensor: Tensor, heads: int) -> Tensor:
    """Keys or values `(1, kv_heads, rows, size)`, repeated to one per query head."""
    repeats = heads // tensor.shape[1]
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, dim=1)


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    gqa = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=gqa)


def _equal_documents(query: Tensor, key: Tensor, value: Tensor, scale: float, number: int) -> Tensor:
    """Documents of equal length are batched: one kernel call for all of them."""

    def stack(tensor: Tensor) -> Tensor:  # (1, heads, rows, size) -> (documents, heads, length, size)
        out: Tensor = tensor[0].unflatten(1, (number, -1)).transpose(0, 1)
        return out

    out = _causal(stack(query), stack(key), stack(value), scale)
    return out.transpose(1, 2).flatten(0, 1)[None]


@lru_cache(maxsize=2)
def _flex_attention(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    if compiled:
        return torch.compile(flex_attention, dynamic=True)
    return flex_attention


def check_kernel(kernel: str) -> None:
    """Raises:
    UserError: `kernel` is unknown.
    """
    if kernel not in KERNELS:
        raise UserError(f"model.attention is '{kernel}'; it must be one of {', '.join(KERNELS)}")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    documents: DocumentAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if documents is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    return _apart(documents, query, key, value, scaling), None


# document lengths differ in every row, so a compiled block would be recompiled for each
_apart: Callable[[DocumentAttention, Tensor, Tensor, Tensor, float], Tensor] = torch.compiler.disable(
    DocumentAttention.__call__
)


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
