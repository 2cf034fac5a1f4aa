"""Read-ahead for the codec: threads decode audio while the codec works; batches are cut by seconds."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from vita_audio_pl.data.readers import AnyAudio, AudioBytes, RawSample, Unreadable, unreadable

BROKEN_AUDIO, TOO_MUCH_TEXT = "unreadable audio", "text too long"

LONGEST_TEXT = 1 << 20
"""Most characters in a sample's messages: several times what the longest row holds."""

_READ_AHEAD = 64  # samples whose audio is decoded while the codec works
_MOST_HELD = 256 << 20  # bytes of their audio
_MOST_IN_BATCH = 4096  # batch size for samples without audio

Batch = list[tuple[RawSample, list[np.ndarray]]]
"""Samples with their waves, `(samples,) float32` each."""


@dataclass
class _Waiting:
    """A sample whose audio is being decoded."""

    raw: RawSample
    waves: list["Future[np.ndarray]"]

    @property
    def bytes(self) -> int:
        """Present memory of its audio: encoded, and decoded."""
        stored = sum(len(audio.data) for audio in self.raw.audios if isinstance(audio, AudioBytes))
        return stored + sum(wave.result().nbytes for wave in self.waves if wave.done() and wave.exception() is None)


@dataclass(frozen=True)
class ReadAhead:
    """How a part of a corpus is read.

    Attributes:
        batch_seconds: approximate seconds of audio per batch.
        load: decodes audio, in a thread.
        seconds: length of a sample's audio; raises `LeftOut` if it is filtered.
        skip: receives samples that are left out.
        clocked: context manager that adds the time of its block to a named counter.
    """

    batch_seconds: float
    load: Callable[[AnyAudio], np.ndarray]
    seconds: Callable[[RawSample, list[np.ndarray]], float]
    skip: Callable[[Unreadable], None]
    clocked: Callable[[str], AbstractContextManager[None]]

    def batches(self, corpus: Iterator[RawSample | Unreadable], pool: Executor) -> Iterator[Batch]:
        """Samples in order, about `batch_seconds` of audio at a time."""
        waiting: deque[_Waiting] = deque()
        batch: Batch = []
        seconds = 0.0
        while (raw := self._next(corpus)) is not None:
            if isinstance(raw, Unreadable):
                self.skip(raw)
                continue
            characters = sum(len(message.content) for message in raw.conversation.messages)
            if characters > LONGEST_TEXT:
                name = raw.conversation.id
                self.skip(Unreadable(name, f"{name}: {characters} characters are no sample of a row", TOO_MUCH_TEXT))
                continue
            waiting.append(_Waiting(raw, [pool.submit(self.load, audio) for audio in raw.audios]))
            while len(waiting) > _READ_AHEAD or sum(sample.bytes for sample in waiting if sample.waves) > _MOST_HELD:
                seconds += self._take(waiting.popleft(), batch)
            if seconds >= self.batch_seconds or len(batch) >= _MOST_IN_BATCH:
                yield batch
                batch, seconds = [], 0.0
        while waiting:
            seconds += self._take(waiting.popleft(), batch)
            if seconds >= self.batch_seconds:
                yield batch
                batch, seconds = [], 0.0
        if batch:
            yield batch

    def _next(self, corpus: Iterator[RawSample | Unreadable]) -> RawSample | Unreadable | None:
        with self.clocked("reading"):
            return next(corpus, None)

    def _take(self, waiting: _Waiting, batch: Batch) -> float:
        """Move a sample into the batch if all its audio is usable; returns its seconds."""
        try:
            with self.clocked("reading"):
                waves = [future.result() for future in waiting.waves]
            seconds = self.seconds(waiting.raw, waves)
        except Exception as error:
            self.skip(unreadable(waiting.raw.conversation.id, error, BROKEN_AUDIO))
            return 0.0
        batch.append((waiting.raw, waves))
        return seconds
