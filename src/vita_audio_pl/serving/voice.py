"""From tokens to events with audio, in worker threads: each answer's pieces in order, independent of other answers."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from vita_audio_pl.inference.streaming import AudioChunk, Event, EventMaker
from vita_audio_pl.serving.workers import Workers

Batch: TypeAlias = tuple[list[int], list[int], bool]
"""Tokens, their writers, and whether they are not to wait for others."""
_PAUSE = 0.1
"""Seconds. Text is read no faster, and each handing on is a task, an event and a message."""


class Speaker:
    """Makes the events of one answer in the pool's threads, one batch of tokens at a time, or several at once.

    Args:
        pool: worker threads.
        maker: makes the events.
        codes_per_second: of the codec; 0 without one.
        tell: receives each event, in a worker's thread; None after the last. An exception ends the answer's audio.
    """

    def __init__(
        self,
        pool: Workers,
        maker: EventMaker,
        codes_per_second: float,
        tell: Callable[[Event | None | Exception], None],
    ):
        self._pool, self._maker, self._deliver = pool, maker, tell
        self._codes_per_second = codes_per_second
        self._pending: deque[Batch | None] = deque()
        self._lock = threading.Lock()
        self._working = self._silenced = self._heard = False
        self._next = 0.0  # from when on tokens are worked on without being complete
        # when a player that started with the first audio has played everything made so far
        self._due = time.monotonic()

    def push(self, tokens: list[int], writers: list[int]) -> None:
        """Add new tokens; returns at once. What needs no sound waits for what does, but no longer than `_PAUSE` after the last."""
        now = time.monotonic()
        begins = self._maker.completes(tokens) or now >= self._next
        if begins:
            self._next = now + _PAUSE
        self._put((tokens, writers, begins))

    def finish(self) -> None:
        """End of the tokens; what was held back is delivered, then None."""
        self._put(None)

    def silence(self) -> None:
        """Deliver only the end."""
        self._silenced = True

    def _put(self, batch: Batch | None) -> None:
        with self._lock:
            self._pending.append(batch)
            if self._working or not _begins(batch):
                return
            self._working = True
        self._pool.submit(self._work, self._due)

    def _work(self) -> None:
        """Process what is due; the next batch is queued behind other answers' work."""
        with self._lock:
            batch = self._next_batch()
        try:
            if not self._silenced:
                events = self._maker.finish() if batch is None else self._maker.push(*batch)
                for event in events:  # the next one may be sound, which takes time and can fail
                    self._count(event)
                    if not self._silenced:
                        self._deliver(event)
        except Exception as error:
            self._silenced = True
            self._deliver(error)
        if batch is None:
            self._deliver(None)
            self._deliver = _ignore  # the listener holds this object, and can be garbage-collected at once
        with self._lock:
            self._working = any(map(_begins, self._pending))
            if not self._working:
                return
        self._pool.submit(self._work, self._due)

    def _next_batch(self) -> tuple[list[int], list[int]] | None:
        """The oldest tokens up to those that were not to wait, with what has piled up after them: their sound costs less if it is made at once.

        Together they are no longer than what a player still has to play, so that it does not run dry meanwhile.
        """
        batch = self._pending.popleft()
        if batch is None:
            return None
        tokens, writers, begins = batch
        most = (self._due - time.monotonic()) * self._codes_per_second
        while self._pending and (after := self._pending[0]) is not None:
            if begins and len(tokens) + len(after[0]) > most:
                break
            self._pending.popleft()
            tokens, writers, begins = tokens + after[0], writers + after[1], begins or after[2]
        return tokens, writers

    def _count(self, event: Event) -> None:
        """Note how long a player plays."""
        if isinstance(event, AudioChunk):
            self._due = (self._due if self._heard else time.monotonic()) + event.wave.size / event.sample_rate
            self._heard = True


def _begins(batch: Batch | None) -> bool:
    return batch is None or batch[2]


def _ignore(event: Event | None | Exception) -> None:
    """The default listener, which ignores everything."""
