"""The Liger kernel in place of our cross entropy: an option for CUDA devices, never chosen by itself."""

from importlib.metadata import PackageNotFoundError, version

import torch
from packaging.version import Version
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.linear_cross_entropy import RowLosses

# earlier releases scale the weight's gradient wrongly where rows weigh differently
_FIRST_RIGHT = Version("0.8.5")


def liger_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, row_weights: Tensor) -> RowLosses:
    """`linear_cross_entropy` by Liger's fused kernel: same arguments and results.

    Rows weigh differently, so Liger computes its logits a second time in the backward pass, and logits are rounded to
    the weights' type.

    Raises:
        UserError: the device is not CUDA, or Liger is missing or older than 0.8.5.
    """
    if not hidden.is_cuda:
        raise UserError("objective.kernel=liger runs on CUDA devices only; set objective.kernel=torch")
    try:
        installed = version("liger-kernel")
    except PackageNotFoundError:
        raise UserError("objective.kernel=liger needs liger-kernel; install vita-audio-pl[gpu]") from None
    if Version(installed) < _FIRST_RIGHT:
        raise UserError(f"objective.kernel=liger needs liger-kernel {_FIRST_RIGHT} or later; upgrade {installed}")
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    out = liger_fused_linear_cross_entropy(
        hidden, weight, targets, reduction="none", accum_dtype=torch.float32, return_predicted_tokens=True
    )
    return RowLosses((out.loss * row_weights).sum(), out.loss.detach(), out.predicted_tokens == targets)
