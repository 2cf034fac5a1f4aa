"""Reading speech from files of any usual format, and writing it: 32-bit float mono in memory, 16-bit WAV on disk."""

import io
import math
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from vita_audio_pl.codecs.truncation import ReadAt, bytes_reader, file_reader, find_truncation, truncation_in_log
from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.storage.files import output_file, write_output
from vita_audio_pl.storage.remote import RemotePath
from vita_audio_pl.storage.remote_file import explain_faults

_COMPRESSED = (".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac")

LOWEST_RATE, HIGHEST_RATE = 2_000, 768_000  # Hz; below the first there is no speech to hear
MOST_CHANNELS = 64
LOUDEST = 10.0  # times full scale; beyond it the samples are on another scale, such as that of 16-bit integers
OVERSHOOT = 0.1  # seconds that a piece may end past the recording's end: ends are rounded
_MP3_SLACK = 4 * 1152  # samples: without a Xing header the length is an estimate; `find_truncation` has counted frames
_LONGEST_NAME = 300  # characters in messages: a data URI holds megabytes
_CANCELLED = 0.05  # a mix this much weaker than its strongest channel is made of channels that cancel each other
_BLOCK = 1 << 20  # numbers decoded at a time
_WHOLE = 8 << 20  # bytes of a remote recording that is fetched in one go
_RANGE = 1 << 19  # bytes of a longer one fetched at a time
_PACKED = (".tar", ".tar.gz", ".tgz", ".zip")
_UNKNOWN = 1 << 62  # frames that libsndfile gives where a header has no length


class AudioTooLong(UserError):
    """The audio is fine but longer than is taken here."""


def read_audio(
    source: str | Path | RemotePath | BinaryIO,
    sample_rate: int,
    max_seconds: float | None = 600.0,
    *,
    start: float = 0.0,
    seconds: float | None = None,
    channel: int | None = None,
    name: str | None = None,
) -> np.ndarray:
    """Reads an audio file, or a piece of it, as one channel at `sample_rate` Hz.

    Channels are averaged unless one is chosen, other rates resampled (soxr, high quality), samples beyond full scale
    clipped to it.

    Args:
        source: any file libsndfile reads (WAV of 8 to 64 bits, FLAC, Ogg, MP3, AIFF, ...), or an open binary one. Of a
            remote one, a long recording is read in the ranges that are needed.
        sample_rate: wanted rate in Hz.
        max_seconds: longest audio accepted, judged before it is decoded; None accepts any.
        start: seconds into the file where to begin.
        seconds: how much to read; None reads to the end.
        channel: which channel to take, from 0; None averages all.
        name: what messages call the audio; the path by default.

    Returns:
        `(samples,) float32`, at least one sample, all finite, within [-1, 1].

    Raises:
        AudioTooLong: longer than `max_seconds`.
        UserError: the file is missing, empty, not audio, cut short, below 2 kHz, ends before the piece does, holds NaN
            or infinite samples or samples of another scale, has no such channel, or its channels cancel each other.
        OSError: the machine failed, not the file (`errors.is_machine_fault`).
    """
    name = name or (str(source) if isinstance(source, str | Path | RemotePath) else "the audio")
    name = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
    if not (math.isfinite(start) and start >= 0 and (seconds is None or (math.isfinite(seconds) and seconds > 0))):
        raise UserError(f"{name}: {start:g} s to {start + (seconds or 0):g} s is not a piece of a recording")
    try:
        with _opened(source, name) as raw:
            why = find_truncation(raw.read_at, raw.size, max_seconds) if seconds is None else None
            if why is not None:
                raise UserError(f"{name} is cut short: {why}")
            with soundfile.SoundFile(raw.handle, closefd=False) as file:
                wave, rate = _Piece(file, name, start, seconds, channel).read(max_seconds)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{name} is not audio that can be read: {' '.join(error.error_string.split())}") from None
    except (OSError, RuntimeError, ValueError) as error:
        if is_machine_fault(error):
            raise
        raise UserError(f"{name} cannot be read: {error}") from None
    if rate != sample_rate:
        wave = soxr.resample(wave, rate, sample_rate)
    if len(wave) == 0:
        raise UserError(f"{name}: the audio file holds no samples")
    return np.asarray(np.clip(wave, -1.0, 1.0), dtype=np.float32)


@dataclass(frozen=True)
class _Raw:
    """An open recording: what libsndfile takes, and its bytes."""

    handle: Any
    read_at: ReadAt
    size: int


@contextmanager
def _opened(source: str | Path | RemotePath | BinaryIO, name: str) -> Iterator[_Raw]:
    if isinstance(source, RemotePath):
        with _opened_remote(source, name) as raw:
            yield raw
        return
    if not isinstance(source, str | Path):
        data = source.read()
        if not data:
            raise UserError(f"{name}: the audio file is empty (0 bytes)")
        yield _Raw(io.BytesIO(data), bytes_reader(data), len(data))
        return
    try:
        status = os.stat(source)
    except (OSError, ValueError) as error:  # ValueError: names that no file can have
        if is_machine_fault(error):
            raise
        raise UserError(f"{name}: there is no such audio file{_packed(Path(source).parent)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{name} is a folder, not an audio file")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{name} is a device or a pipe, not an audio file")
    if status.st_size == 0:
        raise UserError(f"{name}: the audio file is empty (0 bytes)")
    # opened here and not by libsndfile, which would call running out of file handles a bad file
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield _Raw(descriptor, file_reader(descriptor), status.st_size)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=1024)
def _packed(folder: Path) -> str:
    """Which archive may hold a folder that is not there, for a sentence; empty where none does."""
    try:
        above = next((place for place in (folder, *folder.parents) if place.is_dir()), folder)
        names = [f"{part}{ending}" for part in folder.relative_to(above).parts for ending in _PACKED]
        places = (place / name for place in (above, above.parent) for name in names)
        found = next((place for place in places if place.is_file()), None)
    except (OSError, ValueError):
        return ""
    return f"; {found} may hold it: unpack it" if found else ""


@contextmanager
def _opened_remote(source: RemotePath, name: str) -> Iterator[_Raw]:
    try:
        size = source.stat().st_size
        if size <= _WHOLE:
            with _opened(io.BytesIO(source.read_bytes()), name) as raw:
                yield raw
            return
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such audio file") from None
    with source.open("rb", _RANGE) as file, explain_faults(file):
        yield _Raw(file, source.read_at, size)


class _Piece:
    """The piece of an open file that is wanted, decoded block by block so that many channels take no memory."""

    def __init__(self, file: soundfile.SoundFile, name: str, start: float, seconds: float | None, channel: int | None):
        self.file, self.name, self.channel, self.rate = file, name, channel, file.samplerate
        if not LOWEST_RATE <= self.rate <= HIGHEST_RATE:
            raise UserError(
                f"{name}: a sample rate of {self.rate} Hz is not one of speech ({LOWEST_RATE} to {HIGHEST_RATE} Hz)"
            )
        if file.channels > MOST_CHANNELS:
            raise UserError(
                f"{name}: {file.channels} channels are more than a speech recording has (most: {MOST_CHANNELS})"
            )
        if channel is not None and channel >= file.channels:
            raise UserError(f"{name}: there is no channel {channel}; it has {file.channels}, counted from 0")
        self.first = round(start * self.rate)
        self.wanted = None if seconds is None else round(seconds * self.rate)
        if file.frames >= _UNKNOWN:
            raise UserError(f"{name}: its header has no length (it was written to a pipe); encode it again")
        if file.frames and self.first >= file.frames:
            raise UserError(f"{name}: it is {file.frames / self.rate:.2f} s long and ends before {start:.2f} s")

    def read(self, max_seconds: float | None) -> tuple[np.ndarray, int]:
        """The piece as one channel and its rate."""
        if self.wanted is None and (why := truncation_in_log(self.file.format, self.file.extra_info)):
            raise UserError(f"{self.name} is cut short: {why}")
        expected = max(self.file.frames - self.first, 0) if self.wanted is None else self.wanted
        if max_seconds is not None and expected > max_seconds * self.rate:
            raise AudioTooLong(
                f"{self.name}: {expected / self.rate:.0f} s of audio, more than the {max_seconds:.0f} s allowed here; "
                "cut it first"
            )
        if self.first:
            self.file.seek(self.first)
        waves: list[np.ndarray] = []
        powers, sums = np.zeros(self.file.channels), np.zeros(self.file.channels)
        got = 0
        for block in self._blocks(expected):
            self._check(block)
            got += len(block)
            powers += np.square(block, dtype=np.float64).sum(axis=0)
            sums += block.sum(axis=0, dtype=np.float64)
            waves.append(block[:, 0] if self.file.channels == 1 else self._one_channel(block))
        self._check_length(got, expected)
        wave = np.concatenate(waves) if waves else np.empty(0, np.float32)
        power = len(wave) * float(np.var(wave, dtype=np.float64)) if len(wave) else 0.0  # a constant offset is no sound
        if self.channel is None and power < _CANCELLED**2 * (powers - sums**2 / max(got, 1)).max():
            raise UserError(
                f"{self.name}: its {self.file.channels} channels cancel each other out when mixed; "
                "give one of them (in a recipe: channel: 0)"
            )
        return wave, self.rate

    def _blocks(self, expected: int) -> Iterator[np.ndarray]:
        """Blocks `(frames, channels) float32` up to `expected` frames or the end."""
        at, size = 0, max(_BLOCK // self.file.channels, 1)
        while at < expected:
            block = self.file.read(min(size, expected - at), dtype="float32", always_2d=True)
            if not len(block):
                return
            at += len(block)
            yield block

    def _one_channel(self, block: np.ndarray) -> np.ndarray:
        wave = block.mean(axis=1, dtype=np.float64) if self.channel is None else block[:, self.channel]
        return wave.astype(np.float32)

    def _check(self, block: np.ndarray) -> None:
        finite = np.isfinite(block)
        if not finite.all():
            raise UserError(f"{self.name}: {int((~finite).sum())} samples are NaN or infinite; export the audio again")
        peak = float(np.abs(block).max(initial=0.0))
        if peak > LOUDEST:
            raise UserError(
                f"{self.name}: samples reach {peak:g}, where full scale is 1; scale them, or write them as 16-bit"
            )

    def _check_length(self, got: int, expected: int) -> None:
        if self.wanted is not None:
            if got < expected - OVERSHOOT * self.rate:
                raise UserError(
                    f"{self.name}: the recording ends at {(self.first + got) / self.rate:.2f} s, "
                    f"before the piece that ends at {(self.first + expected) / self.rate:.2f} s"
                )
        elif got < expected - (_MP3_SLACK if self.file.format in ("MP3", "MPEG") else 0):
            raise UserError(f"{self.name} is cut short: {got} of {expected} samples could be decoded")


def wav_file(path: str | Path, recordings: Iterable[str | Path]) -> Path:
    """The path to `write_wav` what the user named, before there is something to write.

    recordings: that are read for it.

    Raises:
        UserError: it is one of the recordings, has another format's name, or as `output_file`.
    """
    target = output_file(path)
    if any(os.path.realpath(recording) == str(target) for recording in recordings):
        raise UserError(f"output={path} is one of the recordings that are read, and would be lost: give another name")
    if target.suffix.lower() in _COMPRESSED:
        raise UserError(f"output={path}: a wav is written; give a name that ends in .wav, and convert it afterwards")
    return target


def write_wav(path: str | Path, wave: np.ndarray, sample_rate: int) -> None:
    """Writes `wave: (samples,) float` in [-1, 1] as 16-bit mono WAV, whole or not at all; folders are made.

    Raises:
        UserError: what is there is no regular file.
        ValueError: the wave is not one channel of finite numbers.
    """
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise ValueError(f"a wave to write must be one channel of finite numbers, not an array of shape {wave.shape}")
    file = io.BytesIO()
    soundfile.write(file, np.clip(wave, -1.0, 1.0), sample_rate, format="WAV", subtype="PCM_16")
    write_output(path, file.getvalue())
