"""Output of a streamed answer: text to a terminal, audio to a growing WAV file or a player's pipe."""

import os
import sys
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

from vita_audio_pl.codecs.protocol import Codec
from vita_audio_pl.inference.loading import LoadedModel
from vita_audio_pl.inference.session import Session
from vita_audio_pl.inference.streaming import AudioChunk, TextPiece, stream
from vita_audio_pl.storage.files import output_file, partial_name

PIPE = "-"


class SoundSink(Protocol):
    """Receives audio chunk by chunk."""

    def write(self, samples: NDArray[np.float32]) -> None:
        """Adds `samples: (n,)` in [-1, 1]."""
        ...


def show_stream(session: Session, loaded: LoadedModel, codec: Codec | None, output: str) -> float:
    """Show text and write audio as they arrive; returns the seconds of audio.

    output: a WAV file that grows chunk by chunk, or `-` for raw 16-bit little-endian mono samples on stdout (text goes
        to stderr then), as in `... | aplay -f S16_LE -r 16000`.
    """
    screen: TextIO = sys.stderr if output == PIPE else sys.stdout
    samples = 0
    with _sink(output, 0 if codec is None else codec.sample_rate) as sink:
        for event in stream(session, loaded.tokenizer, loaded.vocabulary, codec):
            if isinstance(event, TextPiece):
                print(event.text, end="", file=screen, flush=True)
            elif isinstance(event, AudioChunk):
                sink.write(event.wave)
                samples += event.wave.size
    print(file=screen)
    return samples / codec.sample_rate if codec else 0.0


@contextmanager
def _sink(output: str, sample_rate: int) -> Iterator[SoundSink]:
    if output == PIPE:
        yield _RawSamples(sys.stdout.buffer)
        return
    sink = _GrowingWav(Path(output), sample_rate)
    try:
        yield sink
    finally:
        sink.close()


class _RawSamples:
    def __init__(self, pipe: BinaryIO):
        self._pipe = pipe

    def write(self, samples: NDArray[np.float32]) -> None:
        self._pipe.write(_pcm16(samples))
        self._pipe.flush()


class _GrowingWav:
    """A new WAV file that can be played at any time; created with the first chunk, so a silent answer leaves none."""

    def __init__(self, path: Path, sample_rate: int):
        self._path, self._rate = path, sample_rate
        self._opened: tuple[BinaryIO, wave.Wave_write] | None = None

    def write(self, samples: NDArray[np.float32]) -> None:
        if self._opened is None:
            path = output_file(self._path)
            partial = partial_name(path)
            # Python's own file and WAV writer: libsndfile does not report why a write fails
            file: BinaryIO = partial.open("wb")
            os.replace(partial, path)  # the new file replaces an existing one, which is never written into
            wav = wave.open(file)
            wav.setparams((1, 2, self._rate, 0, "NONE", ""))
            self._opened = file, wav
        self._opened[1].writeframes(_pcm16(samples))
        self._opened[0].flush()

    def close(self) -> None:
        if self._opened is not None:
            file, wav = self._opened
            wav.close()
            file.close()


def _pcm16(samples: NDArray[np.float32]) -> bytes:
    """Little-endian 16-bit samples, rounded as libsndfile rounds them."""
    return np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
