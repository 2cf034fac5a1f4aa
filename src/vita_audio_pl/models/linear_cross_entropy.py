"""Cross entropy of a linear layer without its logits: chunks of rows, gradients taken in the forward pass.

For rows `h_i` with targets `y_i` and weights `w_i`, `total = sum_i w_i * (logsumexp(W h_i) - (W h_i)[y_i])`. With
`p_i = softmax(W h_i)` the gradients are `dh_i = w_i (p_i - e_{y_i}) W` and `dW = sum_i w_i (p_i - e_{y_i}) h_i^T`: all
that a chunk needs is at hand in its forward pass, so its logits are overwritten by `p` and thrown away.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class RowLosses(NamedTuple):
    """total: scalar with gradient, weighted sum; each: `(rows,)` float32 unweighted losses; correct: `(rows,)` bool."""

    total: Tensor
    each: Tensor
    correct: Tensor


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, row_weights: Tensor, chunk_rows: int = 512
) -> RowLosses:
    """Weighted cross entropy of `hidden @ weight.T`.

    hidden: (rows, hidden); weight: (vocabulary, hidden); targets: (rows,) int64, all of them valid; row_weights: (rows,)
    float32, the divisor already in them. Sums and gradients of `weight` are accumulated in float32 whatever the weights'
    type; products are taken in the autocast type where autocast is on. A target that ties for the maximum is correct.
    """
    return RowLosses(*_LinearCrossEntropy.apply(hidden, weight, targets, row_weights, chunk_rows))


def compute_type(hidden: Tensor) -> torch.dtype:
    """The type in which products with the vocabulary matrix are taken."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def float32_product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` accumulated and returned in float32, whatever the type of both."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, row_weights, chunk_rows):
        dtype = compute_type(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return _LinearCrossEntropy._chunks(ctx, hidden, weight, weight.to(dtype), targets, row_weights, chunk_rows)

    @staticmethod
    def _chunks(ctx, hidden, weight, matrix, targets, row_weights, chunk_rows):
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wants_weight else None
        each = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        if matrix.dtype != torch.float32 and not matrix.is_cuda:
            matrix = matrix.float()  # the CPU has no product of 16-bit numbers with a 32-bit result
        for start in range(0, len(hidden), chunk_rows):
            rows = slice(start, start + chunk_rows)
            states, target, scale = hidden[rows].to(matrix.dtype), targets[rows, None], row_weights[rows, None]
            logits = float32_product(states, matrix.t())
            largest, where = logits.max(dim=-1, keepdim=True)
            wanted = logits.gather(-1, target)
            torch.softmax(logits, dim=-1, out=logits)
            # the largest probability is at least 1 / vocabulary, so its logarithm loses nothing
            each[rows] = (largest - logits.gather(-1, where).log() - wanted)[:, 0]
            correct[rows] = (wanted == largest)[:, 0]
            if wants_hidden or wants_weight:
                logits.scatter_add_(-1, target, torch.full_like(wanted, -1.0))
                probabilities = logits.to(matrix.dtype)
            if wants_hidden:
                grad_hidden[rows] = float32_product(probabilities, matrix).mul_(scale)
            if wants_weight:
                scaled = (states.float() * scale).to(matrix.dtype)
                if matrix.dtype == torch.float32:
                    grad_weight.addmm_(probabilities.t(), scaled)
                else:
                    grad_weight.add_(float32_product(probabilities.t(), scaled))
        ctx.gradients = grad_hidden, grad_weight
        ctx.types = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(each, correct)
        return (each * row_weights).sum(), each, correct

    @staticmethod
    def backward(ctx, grad_total, *_):
        if ctx.gradients is None:
            raise RuntimeError("the gradient of linear_cross_entropy can be taken once: it is scaled in place")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (
            None if gradient is None else gradient.mul_(grad_total).to(dtype)
            for gradient, dtype in zip(gradients, ctx.types, strict=True)
        )
        return *scaled, None, None, None
