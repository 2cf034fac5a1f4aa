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

    def decode_stream(self) -> "ResampledStream":
        """A fresh stream."""
        return ResampledStream(self._source.decode_stream(), self._source.sample_rate, self.sample_rate)


class ResampledStream:
    """A `DecodeStream` at another rate.

    Attributes:
        stream: at the codec's own.
    """

    def __init__(self, stream: DecodeStream, rate: int, wanted: int):
        self.stream = stream
        self._resampler = Resampler(rate, wanted)

    def push(self, codes: NDArray[np.int32]) -> NDArray[np.float32]:
        """As `DecodeStream.push`."""
        return self.resampled(self.stream.push(codes))

    def resampled(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """What `push` gives, where somebody else has pushed to the stream."""
        return self._resampler.push(wave)

    def finish(self) -> NDArray[np.float32]:
        """As `DecodeStream.finish`."""
        return self._resampler.push(self.stream.finish(), last=True)
