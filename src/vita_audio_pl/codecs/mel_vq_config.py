"""The shape of a `mel_vq` codec, and what of it a folder may ask for."""

import reprlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vita_audio_pl.codecs import spectral
from vita_audio_pl.errors import UserError

_OF_DECODER = ("decoder_width", "decoder_components")
_RANGES = {
    "sample_rate": (2_000, 192_000),
    "hop": (2, 4096),
    "frames_per_code": (1, 1000),
    "n_mels": (1, 512),
    "pca_size": (1, 4096),
    "codebook_size": (1, 65_536),
    "griffin_lim_iterations": (1, 1000),
    "decoder_width": (0, 4096),
    "decoder_components": (0, 65_536),
}
"""What decoding can do in bounded time and memory, so that a codec from elsewhere cannot ask for more."""


@dataclass(frozen=True)
class MelVQConfig:
    """Shape of a `mel_vq` codec; the defaults give 12.5 codes/s."""

    sample_rate: int = 16_000
    hop: int = 128
    frames_per_code: int = 10
    n_mels: int = 80
    pca_size: int = 64
    codebook_size: int = 512
    quietest: float = 1e-5  # mel amplitudes below this count as silence
    griffin_lim_iterations: int = 16
    decoder_width: int = 128  # of the network that reads codes in their context; 0 = none, as in earlier versions
    decoder_components: int = 256  # that the spectra of a code are put together from

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"mel_vq: {name} must be a whole number from {least} to {most}, not {reprlib.repr(value)}"
                )
        if type(self.quietest) is not float or not 0 < self.quietest < 1:
            raise ValueError(f"mel_vq: quietest must lie between 0 and 1, not {reprlib.repr(self.quietest)}")
        if self.frames_per_code < spectral.OVERLAP:
            raise ValueError(f"mel_vq: frames_per_code must be at least {spectral.OVERLAP}, the frames of a window")
        if self.hop % 2:
            raise ValueError(f"mel_vq: hop is {self.hop}, and must be even")
        if self.pca_size > self.n_mels * self.frames_per_code:
            raise ValueError("mel_vq: pca_size exceeds n_mels * frames_per_code")
        if (self.decoder_width == 0) != (self.decoder_components == 0):
            raise ValueError("mel_vq: decoder_width and decoder_components must both be 0, or neither")
        if self.decoder_components > self.frames_per_code * self.bins:
            raise ValueError("mel_vq: decoder_components exceeds the numbers in a code's spectra")

    @property
    def samples_per_code(self) -> int:
        return self.hop * self.frames_per_code

    @property
    def bins(self) -> int:
        return spectral.OVERLAP * self.hop // 2 + 1

    @property
    def fields(self) -> dict[str, int | float]:
        """As `codec.json` has it; without a network it is that of earlier versions, which knew of none."""
        return {name: value for name, value in asdict(self).items() if self.decoder_width or name not in _OF_DECODER}


def read_config(values: Any, where: Path) -> MelVQConfig:
    """The configuration in a `codec.json`, also one of an earlier version.

    Raises:
        UserError: it is not one; the sentence names the file.
    """
    known = {field.name for field in fields(MelVQConfig)}
    if isinstance(values, dict) and not values.keys() & set(_OF_DECODER):
        values = values | dict.fromkeys(_OF_DECODER, 0)  # of an earlier version
    if not isinstance(values, dict) or set(values) != known:
        raise UserError(f"{where}: 'config' must have exactly the keys {', '.join(sorted(known))}")
    try:
        return MelVQConfig(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None
