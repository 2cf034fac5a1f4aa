"""Samples as bytes, in the formats of OpenAI's Realtime protocol: 16-bit PCM, and G.711's mu-law and A-law."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from vita_audio_pl.errors import UserError

OUTPUT_RATE = 24_000
"""Sample rate of outgoing PCM, Hz, as OpenAI's clients expect."""
TELEPHONE_RATE = 8_000
"""Sample rate of G.711, Hz."""
FULL_SCALE = 32768.0
_BY_LIBSNDFILE = {"audio/pcmu": "ULAW", "audio/pcma": "ALAW"}


@dataclass(frozen=True)
class SampleFormat:
    """How a session's samples are sent: one channel. rate: Hz."""

    type: str = "audio/pcm"
    rate: int = OUTPUT_RATE

    def samples(self, data: bytes) -> NDArray[np.float32]:
        """Bytes as `(samples,)` float32 in [-1, 1].

        Raises:
            UserError: 16-bit samples, and an odd number of bytes.
        """
        if self.type not in _BY_LIBSNDFILE:
            return from_pcm16(data)
        raw = {"format": "RAW", "subtype": _BY_LIBSNDFILE[self.type], "samplerate": self.rate, "channels": 1}
        wave: NDArray[np.float32] = soundfile.read(io.BytesIO(data), dtype="float32", **raw)[0]
        return wave

    def encode(self, wave: NDArray[np.float32]) -> bytes:
        """`(samples,)` float32, clipped to [-1, 1], as bytes."""
        if self.type not in _BY_LIBSNDFILE:
            return to_pcm16(wave)
        out = io.BytesIO()
        soundfile.write(out, np.clip(wave, -1, 1), self.rate, format="RAW", subtype=_BY_LIBSNDFILE[self.type])
        return out.getvalue()

    @property
    def described(self) -> dict[str, Any]:
        """In OpenAI's form, which has no rate for G.711."""
        return {"type": self.type} | ({} if self.type in _BY_LIBSNDFILE else {"rate": self.rate})


def format_of(requested: Any, known: SampleFormat, outgoing: bool = False) -> SampleFormat:
    """The format that a session's settings ask for; known: the one it has.

    Raises:
        UserError: it is not a format of the protocol, or the rate is not supported.
    """
    if requested is None:
        return known
    kind = requested.get("type", "audio/pcm")
    if kind in _BY_LIBSNDFILE:
        return SampleFormat(kind, TELEPHONE_RATE)
    if kind != "audio/pcm":
        raise UserError(
            f"audio is audio/pcm (16 bits, little-endian, one channel), audio/pcmu or audio/pcma, not {kind}"
        )
    rate = requested.get("rate", OUTPUT_RATE)
    if outgoing and rate != OUTPUT_RATE:
        raise UserError(f"audio/pcm goes out at {OUTPUT_RATE} Hz; leave its rate out")
    if isinstance(rate, bool) or not isinstance(rate, int) or not 8000 <= rate <= 192_000:
        raise UserError("the rate of audio/pcm is a whole number from 8000 to 192000 Hz")
    return SampleFormat(kind, rate)


def from_pcm16(data: bytes) -> NDArray[np.float32]:
    """16-bit little-endian samples as `(samples,)` float32.

    Raises:
        UserError: an odd number of bytes.
    """
    if len(data) % 2:
        raise UserError("the audio ends in half a sample; send 16-bit little-endian PCM")
    return np.frombuffer(data, "<i2").astype(np.float32) / FULL_SCALE


def to_pcm16(wave: NDArray[np.float32]) -> bytes:
    """`(samples,)` float32 in [-1, 1] as 16-bit little-endian samples."""
    return (np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes()
