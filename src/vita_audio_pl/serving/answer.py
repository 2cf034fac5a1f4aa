"""One answer: asked of the engine, spoken by a `Speaker`, and read as a stream of events by one reader."""

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Request

from vita_audio_pl.inference.dialogue import Item
from vita_audio_pl.inference.generation import Generation
from vita_audio_pl.inference.sequence import Options
from vita_audio_pl.inference.streaming import AudioChunk, Event, EventMaker
from vita_audio_pl.serving.decoding_loop import Finished
from vita_audio_pl.serving.engine import ServedHistory, Ticket
from vita_audio_pl.serving.voice import Speaker

if TYPE_CHECKING:
    from vita_audio_pl.serving.service import Service

_WATCH_EVERY = 0.1  # seconds


@dataclass(frozen=True)
class Ended:
    """The end of an answer: tokens and cost, the item it became, or the error that ended it."""

    generation: Generation | None
    item: Item | None
    error: Exception | None
    seconds: float


class Answer:
    """Events of one answer, for one reader: `async for event in answer`; see `inference.streaming`.

    Attributes:
        ended: how it ended; None while it is in progress.
        cancelled: whether it was ended by `cancel`.
        asked: time of the request, by the monotonic clock.
        speech: seconds of audio so far.
    """

    def __init__(
        self,
        service: "Service",
        conversation: ServedHistory,
        options: Options,
        sound: bool,
        rate: int,
        place: Callable[[], int] | None,
    ):
        self.conversation = conversation
        self.ended: Ended | None = None
        self.cancelled = self._failed = False
        self.speech = 0.0
        self.asked = time.monotonic()
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None | Exception] = asyncio.Queue()
        loaded = service.loaded
        maker = EventMaker(loaded.tokenizer, loaded.vocabulary, service.sound(rate) if sound else None)
        codes_per_second = 0.0 if service.codec is None else service.codec.codes_per_second
        self._speaker = Speaker(service.pool if sound else service.listening, maker, codes_per_second, self._deliver)
        self._ticket: Ticket = service.engine.answer(conversation, options, self._speaker.push, self._end)
        behind = len(conversation.items)
        self._place = place or (lambda: behind)
        mark = object()
        service._open_answers.add(mark)  # not if it was refused
        self._open = weakref.finalize(self, service._open_answers.discard, mark)  # even if nobody reads the events
        self._open.atexit = False

    @property
    def n_read(self) -> int:
        """Tokens of its prompt; 0 before it has a slot."""
        return len(self._ticket.prompt) if self._ticket.begun else 0

    @property
    def n_written(self) -> int:
        """Tokens so far."""
        return self._ticket.n_written

    async def __aiter__(self) -> AsyncIterator[Event]:
        try:
            while (event := await self._events.get()) is not None:
                if isinstance(event, Exception):
                    self._failed = True
                    raise event
                if isinstance(event, AudioChunk):
                    if not self.speech and event.wave.size:
                        self._service.metrics.first_sound(time.monotonic() - self.asked)
                    self.speech += event.wave.size / event.sample_rate
                yield event
            if self.ended is not None and self.ended.error is not None:
                raise self.ended.error
        finally:
            self._close()

    def cancel(self) -> None:
        """End the answer within a round; only the end is delivered."""
        self.cancelled = True
        self._speaker.silence()
        self._service.engine.cancel(self._ticket)

    async def finished(self) -> Ended:
        """Wait for the end and return it; remaining events are discarded."""
        while self.ended is None:
            await self._events.get()
        self._close()
        return self.ended

    def _close(self) -> None:
        """Stop delivering events."""
        if self._open.alive:
            self._open()
            self._count()
            if self.ended is None:
                self.cancel()

    def _end(self, finished: Finished, seconds: float) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, finished, seconds)
        except RuntimeError:  # the loop is closed, so there are no listeners
            self._speaker.silence()
            self._speaker.finish()

    def _settle(self, finished: Finished, seconds: float) -> None:
        """Add what was written to the history."""
        generation, item = finished.generation, None
        if generation is not None:
            item = self.conversation.insert(self._place(), generation)
        self.ended = Ended(generation, item, finished.error, seconds)
        self._speaker.finish()

    def _deliver(self, event: Event | None | Exception) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:
            self._speaker.silence()  # the loop is closed, so there are no listeners

    def _count(self) -> None:
        ended = self.ended
        generation = None if ended is None else ended.generation
        if generation is None or ended is None or self._failed:
            failed = self._failed or (ended is not None and ended.error is not None)
            self._service.metrics.answered("failed" if failed else "cancelled")
            return
        self._service.metrics.answered(
            "cancelled" if self.cancelled else "completed",
            generation.writers,
            generation.drafted,
            generation.accepted,
            ended.seconds,
            self.speech,
        )


@asynccontextmanager
async def watched(request: Request, answer: Answer) -> AsyncIterator[None]:
    """End an answer if its client disconnects while waiting for all of it."""

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(_WATCH_EVERY)
        answer.cancel()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


async def with_first(events: Any) -> AsyncIterator[Any]:
    """The events; None first if there are none, so that the caller can wait for the answer to start."""
    empty = True
    try:
        async for event in events:
            empty = False
            yield event
    finally:
        await events.aclose()
    if empty:
        yield None


async def chain(first: Any, events: Any) -> AsyncIterator[Any]:
    """The first event again, unless it is None, and the others."""
    if first is not None:
        yield first
    async for event in events:
        yield event
