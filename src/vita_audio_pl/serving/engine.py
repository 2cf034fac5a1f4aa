"""The engine: one thread that runs the shared decoder round by round, for all answers of all clients.

Only this thread touches the decoder and the conversations, so nothing needs a lock; others send it work with `do` and
`answer`. Tokens are passed to listeners in the same round, which only queue them: audio is made by the workers of
`Voice`, so that no answer waits for another's.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.dialogue import ChatFormat, Conversation, Item
from vita_audio_pl.inference.generation import Generation
from vita_audio_pl.inference.sequence import DecodedSequence, Options
from vita_audio_pl.serving.workers import promised

T = TypeVar("T")
_LOG = logging.getLogger("vita_audio_pl.serving")
_REST = 0.002  # seconds
_FIRST_GUESS = 5.0  # assumed seconds per answer, before one was measured


class Busy(UserError):
    """All slots and the queue are taken; `seconds`: when to retry."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        super().__init__(f"the server is busy; try again in {seconds:.0f} s")


@dataclass(frozen=True)
class Ended:
    """The end of an answer: tokens and cost, the item it became, or the error that ended it."""

    generation: Generation | None
    item: Item | None
    error: Exception | None
    seconds: float


@dataclass(eq=False)
class Ticket:
    """A requested answer.

    Attributes:
        conversation, options: what to answer, and how to decode it.
        on_tokens: called in the engine's thread with new tokens and their writers; must return at once.
        on_end: called there once, at the end.
    """

    conversation: Conversation
    options: Options
    on_tokens: Callable[[list[int], list[int]], None]
    on_end: Callable[[Ended], None]
    sequence: DecodedSequence | None = None
    taken: int = 0
    begun: float = field(default_factory=time.monotonic)
    over: bool = False


class Engine:
    """Decodes the answers of many conversations; see the module's docstring.

    Args:
        decoder: the shared decoder.
        manner: chat format of the model.
        when_full: see `Conversation`.
        queue_limit: most answers that wait for a slot.
        yields: tokens are generated faster than audio can be made; rounds then yield the CPU to the audio threads.
    """

    def __init__(
        self,
        decoder: Decoder,
        chat_format: ChatFormat,
        *,
        when_full: str = "slide",
        queue_limit: int = 32,
        yields: Callable[[], bool] = lambda: False,
    ):
        self.decoder, self.chat_format, self._when_full, self._limit = decoder, chat_format, when_full, queue_limit
        self.slots = decoder.free_slots
        self._yields = yields
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._mean_seconds = _FIRST_GUESS
        self._asked, self._lock = 0, threading.Lock()  # answers that are waiting or in progress
        self._stopped = False
        self._thread = threading.Thread(target=self._drive, name="engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Number of answers in progress."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Number of answers that wait for a slot."""
        return len(self._waiting)

    @property
    def asked(self) -> int:
        """Number of answers waiting or in progress."""
        return self._asked

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def conversation(self) -> Conversation:
        """Start a conversation."""
        return Conversation(self.decoder, self.chat_format, self._when_full)

    def wait_seconds(self) -> float:
        """Estimated wait for a slot, in seconds, for a new answer."""
        ahead = self._asked - self.slots
        return max(1.0, (ahead + 1) * self._mean_seconds / self.slots)

    def answer(
        self,
        conversation: Conversation,
        options: Options,
        on_tokens: Callable[[list[int], list[int]], None],
        on_end: Callable[[Ended], None],
    ) -> Ticket:
        """Request an answer; it starts as soon as a slot is free.

        Raises:
            Busy: too many answers are waiting.
        """
        with self._lock:
            if self._stopped or self._asked >= self.slots + self._limit:
                raise Busy(self.wait_seconds())
            self._asked += 1
        ticket = Ticket(conversation, options, on_tokens, on_end)
        self._work.put(lambda: self._waiting.append(ticket))
        return ticket

    def cancel(self, ticket: Ticket, n_codes: int | None = None) -> "Future[None]":
        """End an answer within a round; n_codes: number of its codes that were played (see `Conversation.end`)."""
        return self.do(lambda: self._end(ticket, n_codes))

    def close(self, conversation: Conversation) -> "Future[None]":
        """Close a conversation: its answer ends within a round, and its caches are freed."""

        def gone() -> None:
            for ticket in [t for t in (*self._waiting, *self._running) if t.conversation is conversation]:
                self._end(ticket)
            conversation.close()

        return self.do(gone)

    def do(self, work: Callable[[], T]) -> "Future[T]":
        """Run `work` in the engine's thread, between two rounds."""
        future, run = promised(work)
        self._work.put(run)
        return future

    def stop(self) -> None:
        """End all answers and the thread."""
        self._work.put(None)
        self._thread.join()

    def _drive(self) -> None:
        while not self._stopped:
            self._take_work(wait=not self._running)
            self._admit()
            if self._running and self._yields():
                time.sleep(_REST)
            elif self._running:
                try:
                    self.decoder.step()
                    for ticket in list(self._running):
                        self._hand_on(ticket)
                except Exception as error:  # a bug: answers in progress are lost, the server continues
                    _LOG.exception("a round failed")
                    self._give_up(error)
        for ticket in [*self._waiting, *self._running]:
            self._end(ticket)

    def _take_work(self, wait: bool) -> None:
        while True:
            try:
                work = self._work.get(block=wait)
            except queue.Empty:
                return
            if work is None:
                self._stopped = True
                return
            work()
            wait = False

    def _admit(self) -> None:
        while self._waiting and self.decoder.free_slots:
            ticket = self._waiting[0]
            try:
                ticket.sequence = ticket.conversation.begin(ticket.options)
            except Exception as error:  # also a bug: it ends this answer, not the server
                self._finish(ticket, Ended(None, None, error, 0.0))
                continue
            self._waiting.popleft()
            self._running.append(ticket)

    def _give_up(self, error: Exception) -> None:
        for ticket in list(self._running):
            ticket.conversation.close()
            self._finish(ticket, Ended(None, None, error, time.monotonic() - ticket.begun))

    def _hand_on(self, ticket: Ticket) -> None:
        sequence = ticket.sequence
        assert sequence is not None
        new = sequence.ids[sequence.n_prompt + ticket.taken : sequence.n_committed]
        if new:
            writers = sequence.writers[ticket.taken : ticket.taken + len(new)]
            ticket.taken += len(new)
            ticket.on_tokens(new, writers)
        if sequence.finished:
            self._end(ticket)

    def _end(self, ticket: Ticket, n_codes: int | None = None) -> None:
        if ticket.over:
            return
        seconds = time.monotonic() - ticket.begun
        if ticket.sequence is None:
            self._finish(ticket, Ended(None, None, None, seconds))
            return
        conversation = ticket.conversation
        before = set(map(id, conversation.items))
        error: Exception | None = None
        generation: Generation | None = None
        try:
            generation = conversation.end()
        except Exception as failure:
            error = failure
        item = next((item for item in conversation.items if id(item) not in before), None)
        if item is not None and n_codes is not None:
            conversation.cut(item, n_codes)
        self._mean_seconds += 0.2 * (seconds - self._mean_seconds)
        self._finish(ticket, Ended(generation, item, error, seconds))

    def _finish(self, ticket: Ticket, ended: Ended) -> None:
        ticket.over = True
        with self._lock:
            self._asked -= 1
        if ticket in self._running:
            self._running.remove(ticket)
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        # listeners can be garbage-collected at once
        on_end, ticket.on_end, ticket.on_tokens = ticket.on_end, _ignore, _ignore
        on_end(ended)


def _ignore(*_: object) -> None:
    """The default listener, which ignores everything."""
