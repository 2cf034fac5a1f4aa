"""A codec without torch, so that worker processes of tests start at once."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soundfile

from vita_audio_pl.data.readers import AudioRef

N_CODES = 64
RATE = 8000


@dataclass(frozen=True)
class LoudnessCodec:
    """12.5 codes/s: how loud each 80 ms are, in 64 steps."""

    name: str = "loudness"
    sample_rate: int = RATE
    codes_per_second: float = 12.5
    codebook_size: int = N_CODES
    fingerprint: str = "loudness-1"

    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.array([int(np.abs(b).mean() * 63) for b in np.array_split(w, -(-len(w) // 640))]) for w in waves]


class Tone:
    """A voice: half a second of a tone, whatever it is to say."""

    def speak(self, text: str) -> tuple[np.ndarray, int]:
        return (0.5 * np.sin(np.arange(RATE // 2) / 5)).astype(np.float32), RATE


@dataclass(frozen=True)
class CrashingLoader:
    """Ends its process at one file, as a decoder may; in the process `here` it does not."""

    here: int

    def __call__(self, audio: AudioRef, sample_rate: int, max_seconds: float) -> np.ndarray:
        if str(audio).endswith("/5.wav") and os.getpid() != self.here:
            os.kill(os.getpid(), signal.SIGKILL)
        return load_whole_file(audio, sample_rate, max_seconds)


def load_whole_file(audio: AudioRef, sample_rate: int, max_seconds: float) -> np.ndarray:
    """Reads what the toy corpus wrote."""
    wave, rate = soundfile.read(str(audio), dtype="float32")
    assert rate == sample_rate
    return wave
