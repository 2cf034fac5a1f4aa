"""Fused cross entropy of a linear layer that never stores all logits: chunks of rows, gradients in the forward pass.

For rows `h_i` with targets `y_i` and weights `w_i`, `total = sum_i w_i * (logsumexp(W h_i) - (W h_i)[y_i])`. With
`p_i = softmax(W h_i)` the gradients are `dh_i = w_i (p_i - e_{y_i}) W` and `dW = sum_i w_i (p_i - e_{y_i}) h_i^T`: all
that a chunk needs is available in its forward pass, so its logits are overwritten by `p` and discarded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vita_audio_pl.models.chunked_linear import ChunkedLinear, scaled_gradients


class RowLosses(NamedTuple):
    """total: scalar with gradient, weighted sum; each: `(rows,)` float32 unweighted losses; correct: `(rows,)` bool."""

    total: Tensor
    each: Tensor
    correct: Tensor


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, row_weights: Tensor, chunk_rows: int = 512
) -> RowLosses:
    """Weighted cross entropy of `hidden @ weight.T`.

    hidden: (rows, hidden); weight: (vocabulary, hidden); targets: (rows,) int64, all valid; row_weights:
    (rows,) float32, divisor included. The gradient can be taken once. A target that ties for the maximum
    counts as correct.
    """
    wants = torch.is_grad_enabled()
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _LinearCrossEntropy.apply
    return RowLosses(*apply(hidden, weight, targets, row_weights, chunk_rows, wants))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        row_weights: Tensor,
        chunk_rows: int,
        wants_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wants_hidden, wants_weight = (wants_gradient and wants for wants in ctx.needs_input_grad[:2])
        layer = ChunkedLinear(hidden, weight, (wants_hidden, wants_weight))
        each = torch.empty_like(row_weights)
        correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        buffer = layer.buffer(min(chunk_rows, len(hidden)))
        for start in range(0, len(hidden), chunk_rows):
            rows = slice(start, start + chunk_rows)
            target = targets[rows, None]
            logits = layer.logits(hidden[rows], buffer)
            largest, wanted = logits.amax(dim=-1), logits.gather(-1, target)[:, 0]
            probabilities = torch.softmax(logits, dim=-1, out=logits)
            # log of the largest probability instead of logsumexp: accurate, because it is at least 1 / vocabulary
            each[rows] = largest - probabilities.amax(dim=-1).log() - wanted
            correct[rows] = wanted == largest
            probabilities.scatter_add_(-1, target, logits.new_full(target.shape, -1.0))
            layer.take_gradient(rows, probabilities, row_weights[rows, None])
        layer.keep_gradients(ctx)
        ctx.mark_non_differentiable(each, correct)
        return (each * row_weights).sum(), each, correct

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return *scaled_gradients(ctx, grad_total), None, None, None, None
