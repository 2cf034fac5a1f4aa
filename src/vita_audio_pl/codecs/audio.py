"""Reading speech from files of any usual format, and writing it: 32-bit float mono in memory, 16-bit WAV on disk."""

import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from vita_audio_pl.errors import UserError

LOWEST_RATE = 2_000  # Hz; below it there is no speech to hear


class AudioTooLong(UserError):
    """The audio is fine but longer than is taken here."""


def read_audio(
    source: str | Path | BinaryIO,
    sample_rate: int,
    max_seconds: float | None = 600.0,
    *,
    start: float = 0.0,
    seconds: float | None = None,
    name: str | None = None,
) -> np.ndarray:
    """Reads an audio file, or a piece of it, as one channel at `sample_rate` Hz.

    Channels are averaged, other rates resampled (soxr, high quality), samples beyond full scale clipped to it.

    Args:
        source: any file libsndfile reads (WAV of 8 to 64 bits, FLAC, Ogg, MP3, AIFF, ...), or an open binary one.
        sample_rate: wanted rate in Hz.
        max_seconds: longest audio accepted, judged before it is decoded; None accepts any.
        start: seconds into the file where to begin.
        seconds: how much to read; None reads to the end.
        name: what messages call the audio; the path by default.

    Returns:
        `(samples,) float32`, at least one sample, all finite, within [-1, 1].

    Raises:
        AudioTooLong: longer than `max_seconds`.
        UserError: the file is missing, empty, not audio, below 2 kHz, ends before `start`, or holds NaN or infinite
            samples.
    """
    if isinstance(source, str | Path):
        source = Path(source)
        name = name or str(source)
        _check_file(source, name)
    name = name or "the audio"
    try:
        with soundfile.SoundFile(source) as file:
            rate = file.samplerate
            if rate < LOWEST_RATE:
                raise UserError(f"{name}: a sample rate of {rate} Hz is too low for speech (lowest: {LOWEST_RATE} Hz)")
            first = round(start * rate)
            frames = max(file.frames - first, 0) if seconds is None else round(seconds * rate)
            if file.frames and first >= file.frames:
                raise UserError(f"{name}: it is {file.frames / rate:.2f} s long and ends before {start:.2f} s")
            if max_seconds is not None and frames > max_seconds * rate:
                raise AudioTooLong(
                    f"{name}: {frames / rate:.0f} s of audio, more than the {max_seconds:.0f} s allowed here; cut it first"
                )
            if first:
                file.seek(first)
            samples = file.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{name} is not audio that can be read: {error}") from None
    except (OSError, RuntimeError) as error:
        raise UserError(f"{name} cannot be read: {error}") from None
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise UserError(f"{name}: {bad} samples are NaN or infinite; export the audio again")
    wave = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if rate != sample_rate and len(wave):
        wave = soxr.resample(wave, rate, sample_rate)
    if len(wave) == 0:
        raise UserError(f"{name}: the audio file holds no samples")
    return np.asarray(np.clip(wave, -1.0, 1.0), dtype=np.float32)


def _check_file(path: Path, name: str) -> None:
    if not path.exists():
        raise UserError(f"{name}: there is no such audio file")
    if path.is_dir():
        raise UserError(f"{name} is a folder, not an audio file")
    if path.stat().st_size == 0:
        raise UserError(f"{name}: the audio file is empty (0 bytes)")


def write_wav(path: str | Path, wave: np.ndarray, sample_rate: int) -> None:
    """Writes `wave: (samples,) float` in [-1, 1] as 16-bit mono WAV, whole or not at all; folders are made.

    Raises:
        ValueError: the wave is not one channel of finite numbers.
    """
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise ValueError(f"a wave to write must be one channel of finite numbers, not an array of shape {wave.shape}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".wav")
    try:
        with os.fdopen(handle, "wb") as file:
            soundfile.write(file, np.clip(wave, -1.0, 1.0), sample_rate, format="WAV", subtype="PCM_16")
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
