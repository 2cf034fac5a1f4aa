"""Lightning's precision plugins without casting of batches: loss weights must stay float32.

The plugins cast every float tensor of a batch, also inside dataclasses. Our batches are read on the host, and clips
take the dtype of the layer that reads them.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.plugins import DeepSpeedPrecision, HalfPrecision, MixedPrecision, Precision

from vita_audio_pl.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


class HalfWeights(HalfPrecision):
    """Weights in bfloat16 (`bf16-true`); tensors created in a forward pass stay float32, and so do sums."""

    def __init__(self) -> None:
        super().__init__("bf16-true")

    def convert_input(self, data: Any) -> Any:
        return data

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        yield


class DeepSpeedWeights(DeepSpeedPrecision):
    """DeepSpeed casts the model's weights and keeps float32 copies for the optimiser."""

    def convert_input(self, data: Any) -> Any:
        return data


def check_precision(name: str) -> None:
    """Raises:
    UserError: `name` is not a supported precision.
    """
    if name not in PRECISIONS:
        raise UserError(f"trainer.precision is '{name}'; it must be one of {', '.join(PRECISIONS)}")


def plain_precision(name: str, device_type: str) -> Precision:
    """The plugin for engines that leave casting to Lightning: autocast for `bf16-mixed`."""
    if name == "bf16-mixed":
        return MixedPrecision("bf16-mixed", device_type)
    return HalfWeights() if name == "bf16-true" else Precision()
