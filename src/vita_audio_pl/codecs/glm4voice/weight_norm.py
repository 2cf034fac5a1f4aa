"""Convolutions stored with weight normalisation (`weight_g`, `weight_v`) and held as plain, folded weights."""

from typing import Any, TypeVar

from torch import Tensor, nn

_Convolution = TypeVar("_Convolution", nn.Conv1d, nn.ConvTranspose1d)


def _fold(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    gain, direction = state.pop(f"{prefix}weight_g", None), state.pop(f"{prefix}weight_v", None)
    if gain is not None and direction is not None:
        norms = direction.flatten(1).norm(dim=1).reshape(gain.shape)
        state[f"{prefix}weight"] = direction * (gain / norms)


def _unfold(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    weight = state.pop(f"{prefix}weight")
    state[f"{prefix}weight_g"] = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
    state[f"{prefix}weight_v"] = weight


def weight_normed(convolution: _Convolution) -> _Convolution:
    """The same module, whose state dict has the gain over all but the first dimension apart from the direction.

    For transposed convolutions the first dimension is the input channel, as in the public files.
    """
    convolution.register_load_state_dict_pre_hook(_fold)
    convolution.register_state_dict_post_hook(_unfold)
    return convolution


def normed_conv(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Conv1d:
    """A weight-normed convolution that keeps the length."""
    convolution = nn.Conv1d(inputs, outputs, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)
    weight_normed(convolution)
    return convolution
