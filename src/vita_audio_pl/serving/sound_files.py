"""Audio in the formats that clients request, encoded while it is made: WAV and PCM directly, others by libsndfile."""

import struct
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from vita_audio_pl.serving.pcm import to_pcm16

MEDIA_TYPES = {
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "pcm16": "audio/pcm",
    "mp3": "audio/mpeg",
    "flac": "audio/flac",
    "opus": "audio/ogg",
}
_BY_LIBSNDFILE = {"mp3": ("MP3", "MPEG_LAYER_III"), "flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
_ENDLESS = 0xFFFFFFFF


class SoundWriter:
    """Bytes of a mono audio file whose samples arrive gradually.

    Args:
        kind: one of `MEDIA_TYPES`.
        rate: sample rate, Hz.
        whole: collect everything before sending, so that headers can contain the length; of FLAC, this is always done.
    """

    def __init__(self, kind: str, rate: int, whole: bool = False):
        # a FLAC header without the length is read by players, but not by libsndfile
        self._kind, self._rate, self._whole = kind, rate, whole or kind == "flac"
        self._out = _Forward()
        self._begun = False
        self._file: Any = None
        if kind in _BY_LIBSNDFILE:
            format, subtype = _BY_LIBSNDFILE[kind]
            # constant bit rate, so that the duration of a stream follows from its size
            steady = {"compression_level": 0.5, "bitrate_mode": "CONSTANT"} if kind == "mp3" else {}
            self._file = soundfile.SoundFile(self._out, "w", rate, 1, format=format, subtype=subtype, **steady)
        elif kind == "wav":
            self._out.write(_wav_header(rate, None))

    def push(self, wave: NDArray[np.float32]) -> bytes:
        """Add `(samples,)` and return the bytes that are ready; empty until the end if `whole`."""
        if self._file is not None:
            self._file.write(np.clip(wave, -1, 1))
        else:
            self._out.write(to_pcm16(wave))
        return b"" if self._whole else self._taken()

    def finish(self) -> bytes:
        """The rest."""
        if self._file is not None:
            self._file.close()
        data = self._out.take() if self._whole else self._taken()
        if self._whole and self._kind == "wav":
            data = _wav_header(self._rate, len(data) - 44) + data[44:]
        return data

    def _taken(self) -> bytes:
        data = self._out.take()
        if self._kind == "mp3" and not self._begun and data:
            # the first frame gives the file's length, which is unknown: players would stop early
            data = data[max(data.find(data[:2], 4), 0) :]
        self._begun |= bool(data)
        return data


class _Forward:
    """A file that is sent while it grows: libsndfile's corrections of earlier bytes are applied if they are not sent yet."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._sent = self._at = 0

    def write(self, data: Any) -> int:
        data = bytes(data)
        end = self._at + len(data)
        start = max(self._at, self._sent)  # what was sent cannot be rewritten
        if end > start:
            place = start - self._sent
            if len(self._data) < place:
                self._data += bytes(place - len(self._data))
            self._data[place : place + end - start] = data[len(data) - (end - start) :]
        self._at = end
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self._at, 2: self._sent + len(self._data)}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        start = max(self._at - self._sent, 0)
        data = bytes(self._data[start : len(self._data) if size < 0 else start + size])
        self._at += len(data)
        return data

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        data = bytes(self._data)
        self._sent += len(data)
        self._data.clear()
        return data


def _wav_header(rate: int, n_bytes: int | None) -> bytes:
    """WAV header of 16-bit mono samples; None: unknown length, for which players read to the end of the stream."""
    riff, data = (_ENDLESS, _ENDLESS) if n_bytes is None else (n_bytes + 36, n_bytes)
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16)
    return b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + form + b"data" + struct.pack("<I", data)
