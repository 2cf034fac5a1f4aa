"""Sound made in processes of its own: in threads it would hold up the network and a loop that decodes, as few of its steps leave Python for long."""

import itertools
import logging
import os
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from vita_audio_pl.child_processes import attach_worker, worker_context
from vita_audio_pl.codecs.protocol import Codec, DecodeStream, load_codec
from vita_audio_pl.errors import UserError
from vita_audio_pl.serving.pcm import OUTPUT_RATE
from vita_audio_pl.serving.resampling import Resampled, ResampledStream

_LOG = logging.getLogger("vita_audio_pl.serving")
LOADING_SECONDS = 600.0
"""Time in which a codec is loaded."""
_LONGEST_REST = 60.0  # seconds until a codec that could not be loaded is tried again
_TRIES = 3
_YIELDS = 10  # niceness: all answers wait for a round, where processors are few, and each for its sound
_TOGETHER = 8  # pieces of sound at most that are asked for at once, of a codec that can make them so
_WAVE, _ERROR = b"\0", b"\1"  # the last byte of an answer: samples or a traceback stand before it


class SoundLost(UserError):
    """Processes ended or did not answer, more than once for one answer."""


class SoundProcesses:
    """Streams of a codec that is loaded in other processes, each of which decodes for one caller at a time, or for several at once.

    A process that ends, or does not answer for `patience` seconds, is replaced at once, and its streams go on in another.

    Args:
        folder: what `load_codec` reads.
        count: processes; each holds the codec once.
        threads: of torch in each.
        patience: seconds that a piece of sound may take.
    """

    def __init__(self, folder: Path, count: int, threads: int, patience: float = 30.0):
        self._folder, self._count, self._threads, self.patience = folder, count, threads, patience
        self._changed = threading.Condition()
        self._closed = False
        self._failures = 0  # to load the codec, since it was loaded last
        self._processes: list[_SoundProcess] = []
        for _ in range(count):
            self._begin()

    @property
    def pids(self) -> list[int]:
        """Ids of the processes."""
        return [process.pid for process in self._processes]

    @property
    def ready(self) -> bool:
        """Whether a process has loaded the codec and answers."""
        return any(process.ready for process in self._processes)

    @property
    def at_once(self) -> int:
        """Callers that they decode for at a time."""
        return self._count * max((process.together for process in self._processes), default=1)

    def started(self) -> None:
        """Wait until one is ready; if that is broken off, all are ended.

        Raises:
            UserError: the codec cannot be loaded there.
        """
        try:
            with self._changed:
                self._changed.wait_for(lambda: self.ready or self._failures >= self._count, LOADING_SECONDS)
        except BaseException:
            self.close()
            raise
        if not self.ready:
            self.close()
            raise UserError(
                f"the codec in {self._folder} cannot be loaded by a process of its own, whose error stands above; one that is "
                "registered in a program alone needs sound_processes=0"
            )

    def take(self, patience: float = 60.0) -> "_SoundProcess":
        """Of those that are ready, the process that is asked for the least now, then with the fewest streams; waits so many seconds while none is.

        Raises:
            SoundLost: none was ready in time.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.ready or self._closed, patience)
            ready = [process for process in self._processes if process.ready]  # one may have ended since
        if self._closed or not ready:
            raise SoundLost("no process that makes sound is running; try again in a minute, or see the server's log")
        return min(ready, key=lambda process: (process.wanted, len(process.streams)))

    def close(self) -> None:
        """End the processes, and whatever waits for them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            processes = list(self._processes)
        for process in processes:
            process.end()

    def _begin(self) -> None:
        process = _SoundProcess(self._folder, self._threads)
        self._processes.append(process)
        threading.Thread(target=self._watch, args=(process,), name="watch sound", daemon=True).start()

    def _watch(self, process: "_SoundProcess") -> None:
        """Wait for a process to be ready, then for its end, and put another in its place."""
        error = process.load()
        if error and not self._closed:
            _LOG.error("a process that makes sound could not load the codec: %s", error)
        with self._changed:
            self._failures = self._failures + 1 if error else 0
            self._changed.notify_all()
        process.wait()
        with self._changed:
            if not self._closed:
                rest = min(2.0**self._failures, _LONGEST_REST) if self._failures else 0.0
                _LOG.error("a process that makes sound has ended; another takes its place in %g s", rest)
                self._changed.wait_for(lambda: self._closed, rest)
            self._processes.remove(process)
            if not self._closed:
                self._begin()


class RemoteSound:
    """A `SoundSource` in these processes, at that rate."""

    def __init__(self, processes: SoundProcesses, sample_rate: int):
        self._processes, self.sample_rate = processes, sample_rate

    def decode_stream(self) -> DecodeStream:
        """A fresh stream."""
        return RemoteStream(self._processes, self.sample_rate)


class RemoteStream:
    """A `DecodeStream` in one of the processes; if that ends, another repeats what it had done and goes on."""

    def __init__(self, processes: SoundProcesses, sample_rate: int):
        self._processes, self._rate = processes, sample_rate
        self._place: tuple[_SoundProcess, int] | None = None
        self._pushed: list[NDArray[np.int32]] = []

    def push(self, codes: NDArray[np.int32]) -> NDArray[np.float32]:
        """As `DecodeStream.push`.

        Raises:
            SoundLost: it was tried in several processes.
            RuntimeError: the codec failed; its traceback.
        """
        wave = self._made(codes)
        self._pushed.append(codes)
        return wave

    def finish(self) -> NDArray[np.float32]:
        """As `DecodeStream.finish`."""
        rest = self._made(None)
        if self._place is not None:
            process, number = self._place
            process.streams.discard(number)
        return rest

    def _made(self, codes: NDArray[np.int32] | None) -> NDArray[np.float32]:
        for _ in range(_TRIES):
            try:
                if self._place is None:
                    process = self._processes.take()
                    self._place = process, process.open(self)
                    for earlier in self._pushed:
                        process.ask((self._place[1], self._rate, earlier), self._processes.patience)
                process, number = self._place
                return process.ask((number, self._rate, codes), self._processes.patience)
            except EOFError:
                if self._place is not None:
                    self._place[0].end()  # it may not have been noticed yet
                self._place = None
        raise SoundLost("the processes that make sound ended again and again; the server's log may say why")


_Wanted: TypeAlias = tuple[int, int, NDArray[np.int32] | None]
"""A stream's number, the rate that it is wanted at, and its next codes `(n,)`; None: its end."""


@dataclass
class _Asked:
    """A piece of sound that is wanted, and whose turn it is once all before it have their answers."""

    wanted: _Wanted
    turn: threading.Event = field(default_factory=threading.Event)
    sent: bool = False


class _SoundProcess:
    """One process.

    Attributes:
        ready: whether it has loaded the codec and not ended.
        together: pieces of sound that are asked for at once, at most.
        streams: numbers of those that somebody holds.
    """

    def __init__(self, folder: Path, threads: int):
        context = worker_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = os.getpid(), theirs, folder, threads
        self._process = context.Process(target=_decode_for, args=arguments, name="sound", daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()
        self.pid: int = self._process.pid
        self.ready = False
        self.together = 1
        self.streams: set[int] = set()
        self._numbers = itertools.count()
        self._told: set[int] = set()  # streams that the process has
        self._lock = threading.Lock()
        self._line: deque[_Asked] = deque()  # in the order of their answers

    @property
    def wanted(self) -> int:
        """Pieces of sound that are waited for."""
        return len(self._line)

    def load(self) -> str:
        """Wait until it has loaded the codec; if it has not, end it and say why."""
        error = "it ended"
        with suppress(EOFError):
            self.together, *told = self._answer(LOADING_SECONDS)
            error = bytes(told).decode()
        self.ready = not error
        if error:
            self.end()
        return error

    def open(self, holder: object) -> int:
        """The number of a new stream, which lasts as long as its holder."""
        number = next(self._numbers)
        self.streams.add(number)
        weakref.finalize(holder, self.streams.discard, number).atexit = False
        return number

    def ask(self, wanted: _Wanted, patience: float) -> NDArray[np.float32]:
        """A piece of sound, `(samples,)`.

        Raises:
            EOFError: the process has ended, or did not answer and was ended.
            RuntimeError: the codec failed.
        """
        asked = _Asked(wanted)
        with self._lock:
            if not self.ready:
                raise EOFError
            self._line.append(asked)
            if len(self._line) == 1:
                asked.turn.set()
        asked.turn.wait()
        try:
            if not asked.sent:
                self._send()
            answer = self._answer(patience)
        finally:
            with self._lock:
                self._line.popleft()
                if self._line:
                    self._line[0].turn.set()
        if answer[-1:] == _ERROR:
            raise RuntimeError(f"the codec failed in its process:\n{answer[:-1].decode()}")
        return np.frombuffer(answer[:-1], np.float32)

    def wait(self) -> None:
        """Wait for its end."""
        self._process.join()
        self.ready = False

    def end(self) -> None:
        """End it; whoever waits for an answer gets EOFError. It holds nothing that has to be kept."""
        self.ready = False
        self._process.kill()

    def _send(self) -> None:
        """Ask for whatever is wanted by now."""
        with self._lock:
            pieces = list(itertools.islice(self._line, self.together))
        for piece in pieces:
            piece.sent = True
        forgotten = self._told - self.streams
        wanted = [piece.wanted for piece in pieces]
        self._told = (self._told - forgotten) | {number for number, *_ in wanted}
        with suppress(OSError):  # it has ended, as the answer tells
            self._connection.send((wanted, forgotten))

    def _answer(self, patience: float) -> bytes:
        try:
            if self._connection.poll(patience):
                return self._connection.recv_bytes()
        except OSError as error:
            raise EOFError from error
        _LOG.error("a process that makes sound did not answer for %g s and is ended", patience)
        self.end()
        raise EOFError


def warm_up(codec: Codec) -> None:
    """Make what the first piece of sound would wait for: tables of the codec and the resampler."""
    stream = Resampled(codec, OUTPUT_RATE).decode_stream()
    stream.push(codec.silence(2))
    stream.finish()


def _decode_for(parent: int, connection: Connection, folder: Path, threads: int) -> None:
    """Answer until the parent closes the connection."""
    attach_worker(parent)
    if hasattr(os, "nice"):
        os.nice(_YIELDS)
    torch.set_num_threads(threads)
    try:
        codec = load_codec(folder)
        warm_up(codec)
    except Exception:
        connection.send_bytes(b"\1" + traceback.format_exc().encode())
        return
    connection.send_bytes(bytes([_TOGETHER if hasattr(codec, "push_streams") else 1]))
    streams: dict[int, ResampledStream] = {}
    while True:
        try:
            wanted, forgotten = connection.recv()
        except (EOFError, OSError):
            return
        for gone in forgotten:
            streams.pop(gone, None)
        for number, sample_rate, *_ in wanted:
            if number not in streams:
                streams[number] = Resampled(codec, sample_rate).decode_stream()
        for answer in _answers(codec, streams, wanted):
            connection.send_bytes(answer)


def _answers(codec: Any, streams: Mapping[int, ResampledStream], wanted: Sequence[_Wanted]) -> Iterator[bytes]:
    """Of each piece, in order."""
    pushed = [(streams[number].stream, codes) for number, _, codes in wanted if codes is not None]
    waves = codec.push_streams(*zip(*pushed, strict=True)) if len(pushed) > 1 else None
    for number, _, codes in wanted:
        stream, wave = streams[number], None
        if codes is not None and waves is not None:
            try:
                wave = next(waves)
            except Exception:
                waves = None  # each by itself, to tell whose fault it is
        try:
            if wave is not None:
                wave = stream.resampled(wave)
            else:
                wave = stream.finish() if codes is None else stream.push(codes)
            yield np.asarray(wave, np.float32).tobytes() + _WAVE
        except Exception:
            yield traceback.format_exc().encode() + _ERROR
