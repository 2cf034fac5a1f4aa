"""A linear layer in chunks of rows: only one chunk's logits exist at a time, and gradients are accumulated."""

from typing import Any

import torch
from torch import Tensor


class ChunkedLinear:
    """`hidden @ weight.T` for chunks of rows, with buffers for the gradients of both.

    hidden: (rows, hidden); weight: (vocabulary, hidden). Products are taken in the autocast type where autocast is on
    and in float32 on a CPU, which has no 16-bit product with a 32-bit result; results and the gradient of `weight` are
    float32, or float64 for float64 inputs.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, wants: tuple[bool, bool]):
        self.hidden, self.weight = hidden, weight
        self.kind = hidden.device.type
        dtype = torch.get_autocast_dtype(self.kind) if torch.is_autocast_enabled(self.kind) else hidden.dtype
        if not hidden.is_cuda:
            dtype = torch.promote_types(dtype, torch.float32)
        self.matrix = weight.to(dtype)
        self.result = torch.promote_types(dtype, torch.float32)
        self.grad_hidden = torch.empty_like(hidden) if wants[0] else None
        self.grad_weight = torch.zeros(weight.shape, dtype=self.result, device=weight.device) if wants[1] else None

    def buffer(self, rows: int) -> Tensor:
        """Buffer for the logits of `rows` rows, reused by every chunk: on a CPU allocating fresh pages is slow."""
        return torch.empty(rows, len(self.weight), dtype=self.result, device=self.hidden.device)

    def logits(self, states: Tensor, buffer: Tensor | None = None) -> Tensor:
        """Logits `(rows, vocabulary)` of `hidden`, float32 or float64; written into `buffer` if given."""
        out = None if buffer is None else buffer[: len(states)]
        return self._product(states.to(self.matrix.dtype), self.matrix.t(), out)

    def take_gradient(self, rows: slice, grad_logits: Tensor, scale: Tensor) -> None:
        """Accumulate gradients of rows. grad_logits: of the unweighted loss; scale: `(rows, 1)`, its weights."""
        if self.grad_hidden is None and self.grad_weight is None:
            return
        grad_logits = grad_logits.to(self.matrix.dtype)
        if self.grad_hidden is not None:
            self.grad_hidden[rows] = self._product(grad_logits, self.matrix).mul_(scale)
        if self.grad_weight is not None:
            states = (self.hidden[rows].to(self.grad_weight.dtype) * scale).to(self.matrix.dtype)
            if states.dtype == self.grad_weight.dtype:
                self.grad_weight.addmm_(grad_logits.t(), states)
            else:
                self.grad_weight.add_(self._product(grad_logits.t(), states))

    def _product(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        with torch.autocast(self.kind, enabled=False):
            if left.dtype == self.result:
                return torch.mm(left, right, out=out)
            return torch.mm(left, right, out_dtype=self.result, out=out)

    def keep_gradients(self, ctx: Any) -> None:
        """Save the gradients in an autograd context for `scaled_gradients`."""
        ctx.gradients = self.grad_hidden, self.grad_weight
        ctx.types = self.hidden.dtype, self.weight.dtype


def scaled_gradients(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of hidden states and weight that `keep_gradients` saved, times the gradient of the loss.

    Raises:
        RuntimeError: called twice; the saved gradients are scaled in place.
    """
    if ctx.gradients is None:
        raise RuntimeError("the gradient of a chunked loss can be taken once: it is scaled in place")
    gradients, ctx.gradients = ctx.gradients, None
    hidden, weight = (
        None if gradient is None else gradient.mul_(grad_total).to(dtype)
        for gradient, dtype in zip(gradients, ctx.types, strict=True)
    )
    return hidden, weight
