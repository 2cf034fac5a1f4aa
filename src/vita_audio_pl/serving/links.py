"""Where the decoding loop runs: in a thread of this process, or in a process of its own."""

import os
import queue
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import torch

from vita_audio_pl.child_processes import attach_worker, worker_context
from vita_audio_pl.errors import UserError, is_out_of_memory
from vita_audio_pl.inference.checks import refuse_without_heads
from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.loading import LoadedModel, ModelFacts, load_speech_model
from vita_audio_pl.inference.sequence import Options
from vita_audio_pl.serving.decoding_loop import DecodingLoop, Tell, Update
from vita_audio_pl.serving.settings import ServeConfig

Lost: TypeAlias = Callable[[], None]
_PATIENCE = 2.0  # seconds in which a loop that was told to end does
_SPELL, _SPELLS = 10.0, 3


class ThreadLink:
    """To a loop in a thread."""

    def __init__(self, loaded: LoadedModel, config: ServeConfig):
        decoder = decoder_of(loaded, config)
        self.slots, self.capacity = decoder.free_slots, decoder.cache.capacity
        self._tell: Tell = lambda updates: None
        self.loop = DecodingLoop(decoder, lambda updates: self._tell(updates))
        self._thread = threading.Thread(target=self.loop.run, name="decoding", daemon=True)

    def listen(self, tell: Tell, lost: Lost, yields: Callable[[], bool]) -> None:
        """As `Link.listen`; a thread is not lost."""
        self._tell, self.loop.yields = tell, yields
        self._thread.start()

    def send(self, function: Callable[..., None], *arguments: Any) -> None:
        """As `Link.send`."""
        self.loop.inbox.put((function, *arguments))

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def ending(self) -> str:
        """As `Link.ending`."""
        return "by a fault that the log tells"

    def stop(self) -> None:
        """End the loop and its thread."""
        self.send(DecodingLoop.stop)
        if self._thread.ident is not None:
            self._thread.join()


class ProcessLink:
    """To a loop in a process of its own, which loads the model.

    Attributes:
        pid: of the process.
        facts: what is known of the model beside its weights.

    Raises:
        UserError: the model cannot be loaded or served.
    """

    def __init__(self, config: ServeConfig):
        context = worker_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = os.getpid(), theirs, config
        self._process = context.Process(target=_decode, args=arguments, name="decoding", daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()
        self.pid: int = self._process.pid
        self._outbox: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ending = ""
        try:
            begun = self._connection.recv()
        except EOFError:
            self._process.join()
            raise UserError(f"the process that decodes has ended while it loaded the model: {self.ending}") from None
        except BaseException:
            self._process.kill()
            raise
        if isinstance(begun, Exception):
            raise begun
        self.facts: ModelFacts
        self.facts, self.slots, self.capacity = begun

    @property
    def ending(self) -> str:
        """How the process ended."""
        code = self._process.exitcode
        if self._ending:
            return self._ending
        return "killed, as by a system that is out of memory" if code == -9 else f"exit status {code}"

    def listen(self, tell: Tell, lost: Lost, yields: Callable[[], bool]) -> None:
        """As `Link.listen`; other threads do not hold up a process."""
        reader = threading.Thread(target=self._read, args=(tell, lost), name="decoding", daemon=True)
        self._threads = [reader, threading.Thread(target=self._send_all, name="decoding", daemon=True)]
        for thread in self._threads:
            thread.start()

    def send(self, function: Callable[..., None], *arguments: Any) -> None:
        """As `Link.send`; returns at once, even if the process does not read."""
        self._outbox.put((function, *arguments))

    @property
    def alive(self) -> bool:
        return bool(self._process.is_alive())

    def stop(self) -> None:
        """End the loop and its process."""
        self.send(DecodingLoop.stop)
        if self._threads:
            self._process.join(_PATIENCE)
        self._process.kill()
        self._process.join()
        self._outbox.put(None)
        for thread in self._threads:
            thread.join()

    def _send_all(self) -> None:
        with suppress(OSError):
            while (call := self._outbox.get()) is not None:
                self._connection.send(call)

    def _read(self, tell: Tell, lost: Lost) -> None:
        unanswered = 0  # spells of `_SPELL` seconds since it was asked whether it is there
        with suppress(EOFError, OSError):
            while unanswered <= _SPELLS:
                if self._connection.poll(_SPELL):
                    tell(self._connection.recv())
                    unanswered = 0
                    continue
                if not unanswered:
                    self.send(_answer_nothing)
                unanswered += 1
        if unanswered > _SPELLS:
            self._ending = f"it did not answer for {_SPELL * _SPELLS:g} s"
            self._process.kill()
        self._process.join(_PATIENCE)
        lost()


def decoder_of(loaded: LoadedModel, config: ServeConfig) -> Decoder:
    """The decoder of a server; what the first answers would wait for is done, as measuring kernels and costs."""
    runtime = loaded.runtime
    capacity = min(config.context_tokens, runtime.max_positions)
    decoder = Decoder(runtime, slots=config.slots, capacity=capacity, graphs=config.graphs)
    options = Options(loaded.pattern, min(16, config.token_limit, capacity - 1))
    sequence = decoder.open(loaded.tokenizer.encode("a"), options)
    while not sequence.finished:
        decoder.step()
    decoder.close(sequence)
    constraint = SpanConstraint.of(loaded.vocabulary)
    for measure in (
        lambda: runtime.n_heads and runtime.costs,
        lambda: decoder.scorer.most_likely(runtime.embedding[:1], [constraint]),
    ):
        with suppress(UserError):  # of recorded kernels that lack it, and models without heads: for those who ask
            measure()
    return decoder


def load_served(config: ServeConfig) -> LoadedModel:
    """The model of a server.

    Raises:
        UserError: it cannot be loaded, or has no heads where they are asked for.
    """
    torch.set_num_threads(config.threads)
    loaded = load_speech_model(
        config.model,
        device=config.device,
        dtype=None if config.dtype is None else getattr(torch, config.dtype),
        codec_folder=config.codec_folder,
        encoder_folder=config.encoder_folder,
        runs=config.paths.runs,
        kernels=config.kernels,
        quantize=config.quantize,
    )
    refuse_without_heads(loaded.model.n_heads, None, config.verify)
    for parameter in loaded.model.parameters():
        # a file in place of mapped weights may be written while they are served
        parameter.data = parameter.data.clone() if parameter.device.type == "cpu" else parameter.data
    return loaded


def _decode(parent: int, connection: Connection, config: ServeConfig) -> None:
    """Run a loop until the parent says so or closes the connection."""
    attach_worker(parent)
    try:
        loaded = load_served(config)
        decoder = decoder_of(loaded, config)
        begun = loaded.facts, decoder.free_slots, decoder.cache.capacity
    except Exception as error:
        connection.send(_sendable(error))
        return
    connection.send(begun)
    sending = threading.Lock()

    def tell(updates: list[Update]) -> None:
        with sending:
            connection.send([_with_sendable_error(update) for update in updates])

    loop = DecodingLoop(decoder, tell)
    threading.Thread(target=_take, args=(connection, loop, tell), name="inbox", daemon=True).start()
    with suppress(BrokenPipeError):  # of a parent that has ended
        loop.run()


def _answer_nothing() -> None:
    """Sent to ask whether the process is there; a round may take longer than anybody waits, so it is not the loop that answers."""


def _take(connection: Connection, loop: DecodingLoop, tell: Tell) -> None:
    """Pass on what the parent sends."""
    with suppress(EOFError, OSError):
        while True:
            call = connection.recv()
            if call[0] is _answer_nothing:
                tell([])
            else:
                loop.inbox.put(call)
    loop.inbox.put((DecodingLoop.stop,))


def _with_sendable_error(update: Update) -> Update:
    if update.finished is None or update.finished.error is None:
        return update
    return update._replace(finished=update.finished._replace(error=_sendable(update.finished.error)))


def _sendable(error: Exception) -> Exception:
    """An error that can be sent: a bug's may hold anything, so its traceback is what is told of it."""
    if isinstance(error, UserError):
        return UserError(str(error))
    if is_out_of_memory(error):
        return MemoryError(str(error))
    return RuntimeError("".join(traceback.format_exception(error)))
