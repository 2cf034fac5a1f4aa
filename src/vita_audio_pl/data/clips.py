"""Audio for a continuous encoder: FLAC beside the token shards, by sample.

`<hash>.audio.tar` is made of blocks like a token shard (`shards.py`); a sample in it is u32 CRC-32 of the rest, u32
number of clips, u32 bytes of each, then the clips, 16-bit FLAC at 16 kHz. `audio.npy` holds the offset of each sample.
"""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import soundfile
import soxr

from vita_audio_pl.data.readers.base import NO_AUDIO, LeftOut, RawSample

RATE = 16_000
EXTENSION = "audio"
AUDIO_INDEX = "audio.npy"
PLACES = np.dtype([("offset", "<u4"), ("bytes", "<u4")])  # offset in units of four bytes

_HEAD = struct.Struct("<II")


def pack_clips(waves: Sequence[np.ndarray], sample_rate: int) -> bytes:
    """Bytes of a sample's clips, a multiple of four. `waves`: `(samples,) float32` each."""
    clips = [_flac(at_rate(wave, sample_rate)) for wave in waves]
    body = struct.pack("<I", len(clips)) + struct.pack(f"<{len(clips)}I", *map(len, clips)) + b"".join(clips)
    body += b"\0" * (-len(body) % 4)
    return struct.pack("<I", zlib.crc32(body)) + body


def unpack_clips(data: bytes | memoryview) -> list[np.ndarray]:
    """Clips of a sample, `(samples,) float32` at 16 kHz.

    Raises:
        ValueError: the bytes are not what was written.
    """
    if not clips_intact(data):
        raise ValueError("the checksum of its audio does not agree")
    _, count = _HEAD.unpack_from(data)
    sizes = struct.unpack_from(f"<{count}I", data, _HEAD.size)
    at, waves = _HEAD.size + 4 * count, []
    for size in sizes:
        wave, _ = soundfile.read(io.BytesIO(data[at : at + size]), dtype="float32")
        waves.append(wave)
        at += size
    return waves


def clips_intact(data: bytes | memoryview) -> bool:
    """Whether the bytes match their checksum."""
    return len(data) >= _HEAD.size and zlib.crc32(data[4:]) == _HEAD.unpack_from(data)[0]


def at_rate(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """The wave at 16 kHz."""
    return wave if sample_rate == RATE else np.asarray(soxr.resample(wave, sample_rate, RATE), np.float32)


def outside_answers(raw: RawSample, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The waves of a sample that are heard, not spoken.

    Raises:
        LeftOut: one of them is given as codes, which an encoder cannot hear.
    """
    roles = [message.role for message in raw.conversation.messages for _ in range(message.n_audios)]
    heard = [wave for role, wave in zip(roles, waves, strict=True) if role != "assistant"]
    if any(map(is_coded, heard)):
        raise LeftOut(
            NO_AUDIO, f"{raw.conversation.id}: codes stand for an answer's audio; give a recording of what is asked"
        )
    return heard


def is_coded(wave: np.ndarray) -> bool:
    """Whether this is audio as codes, `(codes,)` integers, not as a wave."""
    return bool(np.issubdtype(wave.dtype, np.integer))


def _flac(wave: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
