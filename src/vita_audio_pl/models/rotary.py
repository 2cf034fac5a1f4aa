"""Rotary position embedding that stays exact in a model of 16-bit weights."""

from collections.abc import Callable

from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from vita_audio_pl.models.families import BackboneConfig


class ExactRotaryEmbedding(Qwen2RotaryEmbedding):
    """transformers' rotary embedding, the same in all families, whose frequencies always stay float32.

    An angle is position times frequency: with frequencies in bfloat16 the error of the cosines reaches 1 after about a
    thousand positions. Angles are computed in float32; only the cosines and sines take the dtype of the hidden states.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__(config)  # type: ignore[arg-type]  # it reads fields that every family has

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ExactRotaryEmbedding":
        """Called by `to`, `bfloat16`, `cuda` and the like: moves the frequencies but keeps their dtype."""
        exact = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch declares no types here
        for name, value in exact.items():
            moved = self._buffers[name]
            if value is not None and moved is not None and moved.dtype != value.dtype:
                self._buffers[name] = value.to(moved.device)
        return self
