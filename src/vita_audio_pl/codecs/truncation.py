"""Whether a recording is all there: what its container promises against what the file holds.

libsndfile decodes what is left of a cut WAV, AIFF, MP3 or Ogg file without a word. With the whole transcript beside it,
half a recording is a wrong sample.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

ReadAt = Callable[[int, int], bytes]
"""Offset and number of bytes to these bytes, fewer at the end of the file."""

_SLACK = 128  # bytes: writers that count their own header among the samples
_STREAMED = 0x7FFF0000  # sizes from here on mean "not known yet": a recorder that wrote to a pipe or was never closed
_CHUNKS = 1000  # that a file may have before its samples
_LOGGED = re.compile(r": (\d+) \(should be (\d+)\)")  # size in the header, size that the file allows
_OGG_TAIL = 1 << 17  # bytes: a page is at most 65,307


def find_truncation(read_at: ReadAt, size: int, longest: float | None = None) -> str | None:
    """Why a recording is truncated, or None where it is not or where its container does not say.

    Args:
        read_at: the file.
        size: its bytes.
        longest: seconds after which nothing is looked for any more; None looks at the whole file.
    """
    head = read_at(0, 16)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
        return _cut_chunks(read_at, size, head)
    if head[:4] == b"OggS":
        return _cut_ogg(read_at, size)
    if head[:3] == b"ID3" or _mp3_frame(head[:4]):
        return _cut_mp3(read_at, size, longest)
    return None


def truncation_in_log(format: str, log: str) -> str | None:
    """The same for AU, W64 and CAF, by libsndfile's log; the log is too short for WAV files with long notes."""
    for promised, held in _LOGGED.findall(log) if format in ("AU", "W64", "CAF") else ():
        if int(held) + _SLACK < int(promised) < _STREAMED:
            return f"it holds {held} of {promised} bytes"
    return None


def _cut_chunks(read_at: ReadAt, size: int, head: bytes) -> str | None:
    """WAV (also RIFX and RF64) and AIFF: the size of the chunk of samples."""
    order: Literal["little", "big"] = "little" if head[:4] in (b"RIFF", b"RF64") else "big"
    at, long_size = 12, None
    for _ in range(_CHUNKS):
        chunk = read_at(at, 8)
        if len(chunk) < 8:
            return None
        kind, length = chunk[:4], int.from_bytes(chunk[4:], order)
        if kind == b"ds64":
            long_size = int.from_bytes(read_at(at + 16, 8), "little")
        if kind in (b"data", b"SSND"):
            if head[:4] == b"RF64" and length == 0xFFFFFFFF and long_size is not None:
                length = long_size
            elif length >= _STREAMED:
                return None
            held = size - at - 8
            return f"it holds {held} of {length} bytes of samples" if held + _SLACK < length else None
        at += 8 + length + length % 2
    return None


def _cut_ogg(read_at: ReadAt, size: int) -> str | None:
    """Ogg (Vorbis, Opus, FLAC): the last page is whole and marked as the last."""
    tail = read_at(max(size - _OGG_TAIL, 0), _OGG_TAIL)
    at = tail.rfind(b"OggS")
    page = tail[at:] if at >= 0 else b""
    if len(page) < 27 or len(page) < 27 + page[26] or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        return "its last page is not whole"
    return None if page[5] & 4 else "its last page is not marked as the last"


@dataclass(frozen=True)
class _Frame:
    """Header of an MP3 frame: `bytes` in all, `samples` in it, offset of a Xing header after it, rate in Hz."""

    bytes: int
    samples: int
    side: int
    rate: int


_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def _mp3_frame(head: bytes) -> _Frame | None:
    """What the four bytes of an MPEG layer III frame header say; None where they are none, or of free format."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0 or (head[1] >> 1) & 3 != 1:
        return None
    version, bitrate, rate = (head[1] >> 3) & 3, head[2] >> 4, (head[2] >> 2) & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return None
    first, mono = version == 3, head[3] >> 6 == 3
    kbps, hz = (_KBPS_1 if first else _KBPS_2)[bitrate], _RATES[version][rate]
    size = (144 if first else 72) * kbps * 1000 // hz + ((head[2] >> 1) & 1)
    side = (17 if mono else 32) if first else (9 if mono else 17)
    return _Frame(size, 1152 if first else 576, side, hz)


def _cut_mp3(read_at: ReadAt, size: int, longest: float | None) -> str | None:
    """MP3: the last frame is whole, and there are as many as the Xing header says.

    Without such a header libsndfile guesses the length from the first frame's bit rate and stops there, so that a
    recording of changing bit rate loses its rest: that counts as cut, too.
    """
    start = 0
    while (tag := read_at(start, 10))[:3] == b"ID3" and len(tag) == 10:
        start += 10 + sum((byte & 127) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
    first = _mp3_frame(read_at(start, 4))
    if first is None:
        return None
    xing = read_at(start + 4 + first.side, 16)
    promised = None
    if xing[:4] in (b"Xing", b"Info"):
        promised = int.from_bytes(xing[8:12], "big") if len(xing) >= 12 and xing[7] & 1 else None
        start += first.bytes
    most = None if longest is None else int(longest * first.rate / first.samples) + 2
    frames, smallest, largest = 0, first.bytes, first.bytes
    for at, frame in _mp3_frames(read_at, start):
        if at + frame.bytes > size:
            return "its last frame is not whole"
        frames, smallest, largest = frames + 1, min(smallest, frame.bytes), max(largest, frame.bytes)
        if most is not None and frames > most:
            return None
    if promised is not None:
        return f"it holds {frames} of {promised} frames" if frames + 1 < promised else None
    if largest > smallest + 1:  # padding makes a byte
        return "its bit rate changes and no Xing header says how long it is; encode it again"
    return None


def _mp3_frames(read_at: ReadAt, at: int) -> Iterator[tuple[int, _Frame]]:
    """Offsets and headers of frames that follow one another from `at` on."""
    block, base = b"", at
    while True:
        if at + 4 > base + len(block):
            block, base = read_at(at, 1 << 16), at
        frame = _mp3_frame(block[at - base : at - base + 4])
        if frame is None:
            return
        yield at, frame
        at += frame.bytes


def file_reader(descriptor: int) -> ReadAt:
    """Reads of an open file, wherever it stands."""
    return lambda offset, count: os.pread(descriptor, count, offset)


def bytes_reader(data: bytes) -> ReadAt:
    """Reads of bytes in memory."""
    return lambda offset, count: data[offset : offset + count]
