"""Distillation loss between a predictor and the backbone, in chunks of rows, without storing the logits of either.

With `t = softmax(W g)` the backbone's distribution at a row and `s = softmax(W h)` the predictor's, the loss of a row
is `lambda * KL(t || s) + (1 - lambda) * TV(t, s)`, `KL = sum_v t_v log(t_v / s_v)`, `TV = 1/2 sum_v |t_v - s_v|`, and
`a = 1 - TV` is the chance that speculative sampling accepts the draft (LK losses, arXiv 2602.23881). `t` is a constant. In
the predictor's logits, `dKL = s - t` and `dTV = s * (g - sum_v s_v g_v)` with `g = 1/2 sign(s - t)`.

The same paper's `-log a`, whose gradient is `dTV / a`, is `acceptance`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vita_audio_pl.models.chunked_linear import ChunkedLinear, scaled_gradients
from vita_audio_pl.models.linear_cross_entropy import RowLosses

LEAST_ACCEPTED = 1e-6
"""Keeps `acceptance` finite where hardly anything would be accepted."""


def distillation_loss(
    hidden: Tensor,
    weight: Tensor,
    teacher: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    kl_share: float | str = 0.5,
    chunk_rows: int = 512,
) -> RowLosses:
    """Weighted distance between `softmax(hidden @ weight.T)` and `softmax(teacher[rows] @ weight.T)`.

    hidden: (n, hidden), the predictor; teacher: (tokens, hidden), the backbone, taken as constant; rows: (n,) int64
    on the CPU, the token of each row of `hidden`; if ascending, the backbone's logits of a token
    are computed once for all its predictors; row_weights: (n,) float32, divisor included; kl_share: lambda, or
    `acceptance`. The gradient can be taken once. `correct` is whether predictor and backbone have the same argmax.
    """
    wants = torch.is_grad_enabled()
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Distillation.apply
    return RowLosses(*apply(hidden, weight, teacher, rows, row_weights, kl_share, chunk_rows, wants))


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        teacher: Tensor,
        rows: Tensor,
        row_weights: Tensor,
        kl_share: float | str,
        chunk_rows: int,
        wants_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wants_hidden, wants_weight = (wants_gradient and wants for wants in ctx.needs_input_grad[:2])
        layer = ChunkedLinear(hidden, weight, (wants_hidden, wants_weight))
        each = torch.empty_like(row_weights)
        correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        for start in range(0, len(hidden), chunk_rows):
            chunk = slice(start, start + chunk_rows)
            tokens, shared = torch.unique_consecutive(rows[chunk], return_inverse=True)
            tokens, shared = tokens.to(hidden.device), shared.to(hidden.device)
            goal = layer.logits(teacher[tokens]).log_softmax(dim=-1)
            own = layer.logits(hidden[chunk])
            correct[chunk] = goal.argmax(dim=-1)[shared] == own.argmax(dim=-1)
            own = own.log_softmax(dim=-1)
            log_ratio = goal[shared].sub_(own)  # log t / s
            goal_share, own_share = goal.exp_()[shared], own.exp_()
            divergence = (goal_share * log_ratio).sum(dim=-1)
            half_sign = log_ratio.sign_().mul_(-0.5)
            gap = own_share - goal_share
            variation = (gap * half_sign).sum(dim=-1)
            each[chunk], of_kl, of_tv = _mixed(divergence, variation, kl_share)
            mean = (own_share * half_sign).sum(dim=-1, keepdim=True)
            slope = half_sign.sub_(mean).mul_(own_share).mul_(of_tv[:, None]).add_(gap.mul_(of_kl[:, None]))
            layer.take_gradient(chunk, slope, row_weights[chunk, None])
        layer.keep_gradients(ctx)
        ctx.mark_non_differentiable(each, correct)
        return (each * row_weights).sum(), each, correct

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return *scaled_gradients(ctx, grad_total), None, None, None, None, None, None


def _mixed(divergence: Tensor, variation: Tensor, kl_share: float | str) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each row, and the weights of the gradients of KL and of TV in its own: `(rows,)` each."""
    accepted = (1 - variation).clamp_min(LEAST_ACCEPTED)
    if kl_share == "acceptance":
        return -accepted.log(), torch.zeros_like(accepted), 1 / accepted
    share = torch.full_like(accepted, float(kl_share))
    return share * divergence + (1 - share) * variation, share, 1 - share
