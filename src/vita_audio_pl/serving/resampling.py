"""Waves and streams of a codec at another sample rate."""

import numpy as np
import soxr
from numpy.typing import NDArray

from vita_audio_pl.codecs.protocol import DecodeStream, SoundSource


class Resampler:
    """Resamples a wave that arrives gradually."""

    def __init__(self, rate: int, wanted: int):
        self._stream = None if rate == wanted else soxr.ResampleStream(rate, wanted, 1, dtype="float32")

    def push(self, wave: NDArray[np.float32], last: bool = False) -> NDArray[np.float32]:
        """Add `(samples,)` and return those that are ready."""
        if self._stream is None:
            return wave
        out: NDArray[np.float32] = self._stream.resample_chunk(wave, last=last)
        return out


class Resampled:
    """A `SoundSource` at another rate.

    Args:
        source: the codec.
        sample_rate: that is wanted, Hz.
    """

    def __init__(self, source: SoundSource, sample_rate: int):
        self._source, self.sample_rate = source, sample_rate

    def decode_stream(self) -> DecodeStream:
        """A fresh stream."""
        return _ResampledStream(self._source.decode_stream(), self._source.sample_rate, self.sample_rate)


class _ResampledStream:
    def __init__(self, stream: DecodeStream, rate: int, wanted: int):
        self._stream, self._resampler = stream, Resampler(rate, wanted)

    def push(self, codes: NDArray[np.int32]) -> NDArray[np.float32]:
        return self._resampler.push(self._stream.push(codes))

    def finish(self) -> NDArray[np.float32]:
        return self._resampler.push(self._stream.finish(), last=True)
