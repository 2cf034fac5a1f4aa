"""The engine, as all endpoints see it: answers are asked for and ended here, and their tokens come to listeners.

Rounds run elsewhere (`decoding_loop`), reached through a link: a thread, or a process, which shares no interpreter with the
network. Listeners are called in the link's thread and only queue what they get: audio is made by the workers of `Voice`, so
that no answer waits for another's.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.code_groups import CodeGroups
from vita_audio_pl.inference.dialogue import ChatFormat, History
from vita_audio_pl.inference.sequence import Options
from vita_audio_pl.serving.decoding_loop import Clip, DecodingLoop, Finished, Update, sendable

_LOG = logging.getLogger("vita_audio_pl.serving")
_FIRST_GUESS = 5.0  # assumed seconds per answer, before one was measured


class Busy(UserError):
    """All slots and the queue are taken; `seconds`: when to retry."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        super().__init__(f"the server is busy; try again in {seconds:.0f} s")


class Lost(UserError):
    """The process that decodes has ended."""

    def __init__(self) -> None:
        super().__init__(
            "the server has lost the process that decodes, and ends; try again when it has been started again"
        )


class Link(Protocol):
    """The way to a decoding loop that has begun.

    Attributes:
        slots, capacity: of its decoder.
    """

    slots: int
    capacity: int

    def listen(
        self, tell: Callable[[list[Update]], None], lost: Callable[[], None], yields: Callable[[], bool]
    ) -> None:
        """Hand on what the loop tells from now on, and when its process has ended.

        yields: whether rounds leave the interpreter to other threads for a moment, if they share one.
        """

    def send(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the loop call one of its methods between two rounds."""

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""

    @property
    def ending(self) -> str:
        """How it ended."""

    def stop(self) -> None:
        """End all answers and the loop."""


class ServedHistory(History):
    """A conversation's history; the loop has its caches.

    Attributes:
        number: by which the loop knows it.
    """

    def __init__(self, number: int, chat_format: ChatFormat, capacity: int, when_full: str):
        super().__init__(chat_format, capacity, when_full)
        self.number = number
        self._held: dict[int, tuple[Tensor, int]] = {}  # by id: recordings that the loop has, and their numbers there
        self._next_clip = itertools.count()

    def sendable_clips(self) -> list[Clip]:
        """The recordings, without the features of those that the loop has had for the last answer."""
        known, self._held = self._held, {}
        sendable: list[Clip] = []
        for clip in self.clips:
            features = None
            if id(clip) not in self._held:
                new = id(clip) not in known
                self._held[id(clip)] = (clip, next(self._next_clip)) if new else known[id(clip)]
                features = np.ascontiguousarray(clip.numpy()) if new else None
            sendable.append((self._held[id(clip)][1], features))
        return sendable


@dataclass(eq=False)
class Ticket:
    """A requested answer.

    Attributes:
        prompt, options: what is answered, and how it is decoded.
        on_tokens: called with new tokens and their writers; must return at once.
        on_end: called once, at the end, with what came of it and how many seconds it took.
        begun: whether it got a slot.
        n_written: tokens so far.
    """

    number: int
    prompt: list[int]
    options: Options
    on_tokens: Callable[[list[int], list[int]], None]
    on_end: Callable[[Finished, float], None]
    begun: bool = False
    n_written: int = 0
    asked: float = field(default_factory=time.monotonic)


class Engine:
    """Decodes the answers of many conversations; see the module's docstring. Histories belong to their caller's thread.

    Args:
        link: to the loop.
        chat_format: of the model.
        when_full: see `History`.
        queue_limit: most answers that wait for a slot.
        yields: see `Link.listen`.
    """

    def __init__(
        self,
        link: Link,
        chat_format: ChatFormat,
        *,
        when_full: str = "slide",
        queue_limit: int = 32,
        yields: Callable[[], bool] = lambda: False,
    ):
        self.chat_format, self._when_full, self._limit = chat_format, when_full, queue_limit
        self.link, self.slots = link, link.slots
        self._numbers = itertools.count()
        self._tickets: dict[int, Ticket] = {}  # waiting or in progress
        self._groups: dict[int, CodeGroups] = {}
        self._mean_seconds = _FIRST_GUESS
        self._lock, self._stopped = threading.Lock(), False
        link.listen(self._told, self._lost, yields)

    @property
    def running(self) -> int:
        """Number of answers in progress."""
        with self._lock:
            return sum(ticket.begun for ticket in self._tickets.values())

    @property
    def waiting(self) -> int:
        """Number of answers that wait for a slot."""
        return self.asked - self.running

    @property
    def asked(self) -> int:
        """Number of answers waiting or in progress."""
        return len(self._tickets)

    @property
    def alive(self) -> bool:
        return self.link.alive

    def conversation(self) -> ServedHistory:
        """Start a conversation."""
        return ServedHistory(next(self._numbers), self.chat_format, self.link.capacity, self._when_full)

    def wait_seconds(self) -> float:
        """Estimated wait for a slot, in seconds, for a new answer."""
        ahead = self.asked - self.slots
        return max(1.0, (ahead + 1) * self._mean_seconds / self.slots)

    def answer(
        self,
        conversation: ServedHistory,
        options: Options,
        on_tokens: Callable[[list[int], list[int]], None],
        on_end: Callable[[Finished, float], None],
    ) -> Ticket:
        """Request an answer to a conversation as it is now; it starts as soon as a slot is free.

        A conversation that cannot be answered ends the answer with that error.

        Raises:
            Busy: too many answers are waiting.
            Lost: nothing is decoded any more.
        """
        ticket = Ticket(next(self._numbers), [], options, on_tokens, on_end)
        with self._lock:
            if not self.alive:
                raise Lost
            if self._stopped or len(self._tickets) >= self.slots + self._limit:
                raise Busy(self.wait_seconds())
            self._tickets[ticket.number] = ticket
        try:
            ticket.prompt = conversation.fitting_prompt(options.max_new_tokens)
            groups = self._number_of(options.groups)
            clips = conversation.sendable_clips()
            self.link.send(
                DecodingLoop.answer, ticket.number, conversation.number, ticket.prompt, clips, sendable(options), groups
            )
        except Exception as error:  # also a bug: it ends this answer, which would be waited for
            self._finish(ticket, Finished(None, error))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End an answer within a round."""
        self.link.send(DecodingLoop.cancel, ticket.number)

    def close(self, conversation: ServedHistory) -> None:
        """Close a conversation: its answer ends within a round, and its caches are freed."""
        self.link.send(DecodingLoop.close, conversation.number)

    def stop(self) -> None:
        """End all answers and the loop."""
        self._stopped = True
        self.link.stop()

    def _number_of(self, groups: CodeGroups | None) -> int | None:
        """By which the loop knows groups of codes; they are sent once."""
        if groups is None:
            return None
        if id(groups) not in self._groups:
            self.link.send(DecodingLoop.know_groups, id(groups), groups)
            self._groups[id(groups)] = groups
        return id(groups)

    def _told(self, updates: list[Update]) -> None:
        for number, tokens, writers, finished in updates:
            if (ticket := self._tickets.get(number)) is None:
                continue
            if finished is not None:
                self._finish(ticket, finished)
            elif tokens:
                ticket.n_written += len(tokens)
                ticket.on_tokens(tokens, writers)
            else:
                ticket.begun = True

    def _lost(self) -> None:
        if not self._stopped:
            _LOG.error("the process that decodes has ended")
        for ticket in list(self._tickets.values()):
            self._finish(ticket, Finished(None, Lost()))

    def _finish(self, ticket: Ticket, finished: Finished) -> None:
        seconds = time.monotonic() - ticket.asked
        with self._lock:
            if self._tickets.pop(ticket.number, None) is None:
                return
            if finished.generation is not None:
                self._mean_seconds += 0.2 * (seconds - self._mean_seconds)
        # listeners can be garbage-collected at once
        on_end, ticket.on_end, ticket.on_tokens = ticket.on_end, _ignore, _ignore
        on_end(finished, seconds)


def _ignore(*_: object) -> None:
    """The default listener, which ignores everything."""
