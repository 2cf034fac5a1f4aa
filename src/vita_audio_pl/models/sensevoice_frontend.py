"""SenseVoice's front end: Kaldi filter banks, stacked frames (LFR), mean and variance normalisation (CMVN)."""

import math
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import require_file

SAMPLE_RATE = 16_000  # Hz
CMVN = "am.mvn"
"""File with mean and variance of the features in a published folder."""
_WINDOW, _HOP = 400, 160  # samples
_FULL_SCALE = 32_768.0
_QUIETEST = 1.1920929e-07
_PRE_EMPHASIS = 0.97
_LARGEST_CMVN = 1 << 24  # bytes
_CMVN_PART = r"<{}>.*?<LearnRateCoef>\s+\S+\s+\[([^\]]*)\]"


class SenseVoiceFrontEnd:
    """Waves to the features that the encoder reads, 16.7 frames a second.

    Attributes:
        shift, scale: `(stack * n_mels,)`; features are `(stacked + shift) * scale`.
        stack, stride: filter-bank frames per feature frame, and frames from one feature frame to the next.
        dither: noise added to each sample, in 16-bit steps. The published configuration leaves it at 1, which makes
            features random; with 0, the default here, they are a function of the wave.
    """

    def __init__(
        self,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
        *,
        n_mels: int = 80,
        stack: int = 7,
        stride: int = 6,
        dither: float = 0.0,
    ):
        self.n_mels, self.stack, self.stride, self.dither = n_mels, stack, stride, dither
        self.shift = torch.zeros(stack * n_mels) if shift is None else shift
        self.scale = torch.ones(stack * n_mels) if scale is None else scale

    @property
    def size(self) -> int:
        """Size of a feature frame."""
        return self.stack * self.n_mels

    def frames(self, samples: int) -> int:
        """Feature frames of a wave of `samples` samples; the encoder gives four more."""
        return -(-_fbank_frames(samples) // self.stride)

    def features(
        self, wave: np.ndarray | Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Features `(frames, stack * n_mels)` float32.

        Args:
            wave: `(samples,) float` in [-1, 1] at 16 kHz; samples beyond full scale are not clipped.
            generator: random generator of the dither, if any.
            noise: `(fbank frames, window)` standard normal, used for the dither instead of random numbers.

        Raises:
            UserError: the wave has several channels, fewer than 2 samples, or samples that are not finite.
        """
        banks = self.fbank(wave, generator, noise)
        shift, scale = (part.to(banks.device) for part in (self.shift, self.scale))
        return (self.stacked(banks) + shift) * scale

    def fbank(
        self, wave: np.ndarray | Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Natural-log mel energies `(frames, n_mels)`, 100 frames/s, as Kaldi's; arguments as for `features`."""
        samples = _checked(wave) * _FULL_SCALE
        window = min(_WINDOW, len(samples))  # a clip under 25 ms is one short frame
        frames = samples.unfold(0, window, _HOP)
        if self.dither:
            if noise is None:
                noise = torch.randn(frames.shape, generator=generator)
            frames = frames + self.dither * noise.to(frames.device)
        frames = frames - frames.mean(dim=1, keepdim=True)
        before = torch.cat((frames[:, :1], frames[:, :-1]), dim=1)
        frames = (frames - _PRE_EMPHASIS * before) * _hamming(window, samples.device)
        n_fft = 1 << (window - 1).bit_length()
        powers = torch.fft.rfft(frames, n=n_fft).abs().square()
        out: Tensor = (powers @ _filters(self.n_mels, n_fft, samples.device)).clamp(min=_QUIETEST).log()
        return out

    def stacked(self, banks: Tensor) -> Tensor:
        """Every `stride`-th frame between its neighbours, `(ceil(frames / stride), stack * n_mels)`; edges repeat."""
        last = len(banks) - 1
        centres = torch.arange(0, len(banks), self.stride)[:, None]
        neighbours = torch.arange(self.stack) - self.stack // 2
        return banks[(centres + neighbours).clamp(0, last).to(banks.device)].flatten(1)

    def fitted(self, waves: list[np.ndarray]) -> "SenseVoiceFrontEnd":
        """A front end that normalises the features of these waves to mean 0 and variance 1, to train from scratch."""
        stacked = torch.cat([self.stacked(self.fbank(wave)) for wave in waves])
        scale = 1 / stacked.std(dim=0).clamp(min=1e-3)
        return SenseVoiceFrontEnd(
            -stacked.mean(dim=0), scale, n_mels=self.n_mels, stack=self.stack, stride=self.stride, dither=self.dither
        )


def _fbank_frames(samples: int) -> int:
    return 1 + max(0, samples - _WINDOW) // _HOP


def _checked(wave: np.ndarray | Tensor) -> Tensor:
    samples = torch.as_tensor(wave)
    if samples.ndim != 1:
        raise UserError(f"a wave of shape {tuple(samples.shape)} was given; expected one channel, (samples,)")
    if not samples.is_floating_point():
        raise UserError(f"the wave holds {samples.dtype} samples; expected floats in [-1, 1]")
    if len(samples) < 2:
        raise UserError(f"a wave of {len(samples)} samples is too short; give at least 2")
    if not torch.isfinite(samples).all():
        raise UserError("the wave holds samples that are NaN or infinite")
    return samples.float()


@lru_cache(maxsize=64)
def _hamming(length: int, device: torch.device) -> Tensor:
    return torch.hamming_window(length, periodic=False, device=device)


@lru_cache(maxsize=64)
def _filters(n_mels: int, n_fft: int, device: torch.device) -> Tensor:
    """Kaldi's filters, triangles on the mel scale from 20 Hz without area normalisation, `(n_fft / 2 + 1, n_mels)`."""
    corners = torch.linspace(_mel(20.0), _mel(SAMPLE_RATE / 2), n_mels + 2, dtype=torch.float64)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    bins = torch.tensor([_mel(number * SAMPLE_RATE / n_fft) for number in range(n_fft // 2)], dtype=torch.float64)[
        :, None
    ]
    triangles = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)
    nyquist = torch.zeros(1, n_mels)  # Kaldi omits this bin
    return torch.cat((triangles.float(), nyquist)).to(device)


def _mel(frequency: float) -> float:
    return 1127.0 * math.log(1 + frequency / 700)


def read_cmvn(path: Path, size: int) -> tuple[Tensor, Tensor]:
    """Shift and scale, `(size,)` each, from a Kaldi network text file (`am.mvn`).

    Raises:
        UserError: the file is missing or does not hold `size` finite numbers for each.
    """
    if require_file(path, "it holds the normalisation of the features") > _LARGEST_CMVN:
        raise UserError(f"{path} is too large to hold the normalisation of the features")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path} cannot be read; it holds the normalisation of the features") from None
    parts = []
    for name in ("AddShift", "Rescale"):
        found = re.search(_CMVN_PART.format(name), text, re.DOTALL)
        try:
            values = [float(number) for number in found.group(1).split()] if found else []
        except ValueError:
            values = []
        part = torch.tensor(values)
        if len(part) != size or not torch.isfinite(part).all():
            raise UserError(f"{path} does not hold {size} numbers after <{name}>")
        parts.append(part)
    return parts[0], parts[1]


def write_cmvn(path: Path, shift: Tensor, scale: Tensor) -> None:
    """Writes `am.mvn` as `read_cmvn` reads it."""
    size = len(shift)
    lines = ["<Nnet>", f"<Splice> {size} {size}", "[ 0 ]"]
    for name, part in (("AddShift", shift), ("Rescale", scale)):
        numbers = " ".join(repr(float(number)) for number in part)
        lines += [f"<{name}> {size} {size}", f"<LearnRateCoef> 0 [ {numbers} ]"]
    path.write_text("\n".join([*lines, "</Nnet>"]) + "\n", encoding="utf-8")
