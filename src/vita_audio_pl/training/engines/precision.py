"""Lightning's precision plugins, without what they do to a batch: its loss weights are float32, and stay so.

The plugins cast every float tensor of a batch, inside dataclasses too. Ours are read on the host, and the clips of a
batch take the type of the layer that reads them.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.plugins import DeepSpeedPrecision, HalfPrecision, MixedPrecision, Precision

from vita_audio_pl.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


class HalfWeights(HalfPrecision):
    """Weights in bfloat16 (`bf16-true`); tensors made in a forward pass keep torch's default type: sums are float32."""

    def __init__(self) -> None:
        super().__init__("bf16-true")

    def convert_input(self, data: Any) -> Any:
        return data

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        yield


class DeepSpeedWeights(DeepSpeedPrecision):
    """DeepSpeed casts the weights that run and keeps float32 ones for the optimiser."""

    def convert_input(self, data: Any) -> Any:
        return data


def check_precision(name: str) -> None:
    """Raises:
    UserError: `name` is no precision of training.
    """
    if name not in PRECISIONS:
        raise UserError(f"trainer.precision is '{name}'; it must be one of {', '.join(PRECISIONS)}")


def plain_precision(name: str, device_type: str) -> Precision:
    """The plugin for engines that leave casting to Lightning: autocast for `bf16-mixed`."""
    if name == "bf16-mixed":
        return MixedPrecision("bf16-mixed", device_type)
    return HalfWeights() if name == "bf16-true" else Precision()
