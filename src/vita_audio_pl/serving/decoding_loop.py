"""The loop that runs the shared decoder round by round, for all answers of all conversations, in a thread or process of its own.

Nothing else touches the decoder, so nothing needs a lock. Work comes in as calls of its methods, between two rounds; what a round
wrote is told in one message. It knows conversations as numbers, to find the caches of the last answer again.
"""

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.code_groups import CodeGroups
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.dialogue import ended
from vita_audio_pl.inference.generation import Generation
from vita_audio_pl.inference.sequence import DecodedSequence, Options

_LOG = logging.getLogger("vita_audio_pl.serving")
_REST = 0.002  # seconds
_GATHER = 0.004
"""Seconds. Those whose answers ended together ask again together, and a round for eight costs little more than one for the first of them."""


class Finished(NamedTuple):
    """The end of an answer: what was written, if it ever began, or the error that ended it."""

    generation: Generation | None
    error: Exception | None


class Update(NamedTuple):
    """What became of an answer in a round; the first one, without tokens, says that it has a slot."""

    number: int
    tokens: list[int]
    writers: list[int]
    finished: Finished | None = None


Tell: TypeAlias = Callable[[list[Update]], None]
Clip: TypeAlias = tuple[int, NDArray[Any] | None]
"""Number of a recording, and its features unless they were sent before in the same conversation."""


@dataclass(eq=False)
class _Answer:
    number: int
    conversation: int
    prompt: list[int]
    clips: list[Tensor]
    options: Options
    sequence: DecodedSequence | None = None
    taken: int = 0


@dataclass
class _Conversation:
    """Caches of its last answer, and the recordings that it had."""

    kept: DecodedSequence | None = None
    clips: dict[int, Tensor] = field(default_factory=dict)


class DecodingLoop:
    """See the module's docstring.

    Args:
        decoder: where answers are decoded.
        tell: takes what a round wrote, in the loop's thread; must return at once.

    Attributes:
        yields: whether rounds leave the interpreter to other threads of the process for a moment.
        inbox: calls `(function, *arguments)` to make between two rounds, with the loop as first argument.
    """

    def __init__(self, decoder: Decoder, tell: Tell):
        self.decoder, self._tell = decoder, tell
        self.yields: Callable[[], bool] = lambda: False
        self.inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._waiting: deque[_Answer] = deque()
        self._running: list[_Answer] = []
        self._conversations: dict[int, _Conversation] = {}
        self._groups: dict[int, CodeGroups] = {}
        self._updates: list[Update] = []
        self._stopped = False
        self._crowd = 0  # answers that ran at a time, at most, since there were none

    # -- calls --------------------------------------------------------------------------------------------------------

    def know_groups(self, number: int, groups: CodeGroups) -> None:
        """Groups of codes that options name by this number; they are large."""
        self._groups[number] = groups

    def answer(
        self,
        number: int,
        conversation: int,
        prompt: list[int],
        clips: Sequence[Clip],
        options: Mapping[str, Any],
        groups: int | None,
    ) -> None:
        """Begin an answer as soon as a slot is free; options: fields of `Options`, but for the groups."""
        held = self._conversations.setdefault(conversation, _Conversation())
        known = held.clips | {n: torch.from_numpy(features) for n, features in clips if features is not None}
        held.clips = {n: known[n] for n, _ in clips}
        of = Options(**options, groups=None if groups is None else self._groups[groups])
        self._waiting.append(_Answer(number, conversation, prompt, [known[n] for n, _ in clips], of))

    def cancel(self, number: int) -> None:
        """End an answer where it is."""
        for answer in [a for a in (*self._waiting, *self._running) if a.number == number]:
            self._end(answer)

    def close(self, conversation: int) -> None:
        """End a conversation's answer and free its caches."""
        for answer in [a for a in (*self._waiting, *self._running) if a.conversation == conversation]:
            self._end(answer)
        held = self._conversations.pop(conversation, None)
        if held is not None and held.kept is not None:
            self.decoder.close(held.kept)

    def stop(self) -> None:
        """End all answers and the loop."""
        self._stopped = True

    # -- rounds -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `stop`."""
        while not self._stopped:
            idle = not self._running
            self._take_work(wait=idle)
            self._admit()
            self._crowd = len(self._running) if idle else max(self._crowd, len(self._running))
            if self._running and self.yields():
                time.sleep(_REST)
            elif self._running:
                try:
                    self.decoder.step()
                    for answer in list(self._running):
                        self._hand_on(answer)
                except Exception as error:  # a bug: answers in progress are lost, the server continues
                    _LOG.exception("a round failed")
                    self._give_up(error)
            self._flush()
        for answer in [*self._waiting, *self._running]:
            self._end(answer)
        self._flush()

    def _flush(self) -> None:
        updates, self._updates = self._updates, []
        if updates:
            self._tell(updates)

    def _take_work(self, wait: bool) -> None:
        """Make the calls that have come; wait: until there is an answer to begin, and a moment for as many as last ran at a time."""
        until = 0.0
        while True:
            left = max(until - time.monotonic(), 0.0) if len(self._waiting) < self._crowd else 0.0
            try:
                function, *arguments = self.inbox.get(block=wait or left > 0, timeout=None if wait else left)
            except queue.Empty:
                return
            function(self, *arguments)
            if wait:  # what is told meanwhile is not kept back
                self._flush()
            if self._stopped:
                return
            if wait and self._waiting:
                wait, until = False, time.monotonic() + _GATHER

    def _admit(self) -> None:
        while self._waiting and self.decoder.free_slots:
            answer = self._waiting.popleft()
            held = self._conversations[answer.conversation]
            try:
                answer.sequence = self.decoder.open(answer.prompt, answer.options, answer.clips, held.kept)
            except Exception as error:  # also a bug: it ends this answer, not the server
                self._finish(answer, Finished(None, _noted(error)))
                continue
            held.kept = None
            self._running.append(answer)
            self._updates.append(Update(answer.number, [], []))

    def _give_up(self, error: Exception) -> None:
        for answer in list(self._running):
            if answer.sequence is not None:
                self.decoder.close(answer.sequence)
            self._finish(answer, Finished(None, error))

    def _hand_on(self, answer: _Answer) -> None:
        sequence = answer.sequence
        assert sequence is not None
        new = sequence.ids[sequence.n_prompt + answer.taken : sequence.n_committed]
        if new:
            writers = sequence.writers[answer.taken : answer.taken + len(new)]
            answer.taken += len(new)
            self._updates.append(Update(answer.number, new, writers))
        if sequence.finished:
            self._end(answer)

    def _end(self, answer: _Answer) -> None:
        generation: Generation | None = None
        error: Exception | None = None
        if answer.sequence is not None:
            try:
                generation = ended(self.decoder, answer.sequence)
                self._conversations[answer.conversation].kept = answer.sequence
            except Exception as failure:
                error = _noted(failure)
        self._finish(answer, Finished(generation, error))

    def _finish(self, answer: _Answer, finished: Finished) -> None:
        for where in (self._running, self._waiting):
            if answer in where:
                where.remove(answer)
        self._updates.append(Update(answer.number, [], [], finished))


def _noted(error: Exception) -> Exception:
    if not isinstance(error, UserError):
        _LOG.error("an answer failed", exc_info=error)
    return error


def sendable(options: Options) -> dict[str, Any]:
    """Fields of options but for the groups, as `DecodingLoop.answer` takes them."""
    return {field.name: getattr(options, field.name) for field in fields(options) if field.name != "groups"}
