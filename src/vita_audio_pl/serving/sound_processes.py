"""Sound made in processes of its own: in threads it would hold up the engine, since few of its steps leave Python for long.

On two cores an engine thread and a sound thread of one process do together no more than one of them alone.
"""

import itertools
import logging
import os
import threading
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vita_audio_pl.child_processes import attach_worker, worker_context
from vita_audio_pl.codecs.protocol import Codec, DecodeStream, load_codec
from vita_audio_pl.serving.resampling import Resampled

_LOG = logging.getLogger("vita_audio_pl.serving")
_GONE_SECONDS = 5.0  # that a process may take to end
_WAVE, _ERROR = b"\0", b"\1"  # the last byte of an answer: samples or a traceback stand before it


class SoundProcesses:
    """Streams of a codec that is loaded in other processes, each of which decodes for one caller at a time.

    A process that ends takes its streams with it: their next call raises RuntimeError, and another process takes its place.

    Args:
        folder: what `load_codec` reads.
        count: processes; each holds the codec once.
        threads: of torch in each.
    """

    def __init__(self, folder: Path, count: int, threads: int):
        self._folder, self._threads = folder, threads
        self._lock = threading.Lock()
        self._processes = [_SoundProcess(folder, threads) for _ in range(count)]

    @property
    def pids(self) -> list[int]:
        """Ids of the processes."""
        return [process.pid for process in self._processes]

    def stream(self, sample_rate: int) -> "RemoteStream":
        """A stream at that rate, in the process that has the fewest."""
        with self._lock:
            for place, process in enumerate(self._processes):
                if process.ended:
                    _LOG.error("a process that made sound has ended; another takes its place")
                    process.close()
                    self._processes[place] = _SoundProcess(self._folder, self._threads)
            return RemoteStream(min(self._processes, key=lambda process: len(process.streams)), sample_rate)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()


class RemoteSound:
    """A `SoundSource` in these processes, at that rate."""

    def __init__(self, processes: SoundProcesses, sample_rate: int):
        self._processes, self.sample_rate = processes, sample_rate

    def decode_stream(self) -> DecodeStream:
        """A fresh stream."""
        return self._processes.stream(self.sample_rate)


class RemoteStream:
    """A `DecodeStream` in a `_SoundProcess`."""

    def __init__(self, process: "_SoundProcess", sample_rate: int):
        self._process, self._number, self._rate = process, next(process.numbers), sample_rate
        process.streams.add(self._number)
        weakref.finalize(self, process.streams.discard, self._number).atexit = False

    def push(self, codes: NDArray[np.int32]) -> NDArray[np.float32]:
        """As `DecodeStream.push`."""
        return self._process.ask(self._number, self._rate, codes)

    def finish(self) -> NDArray[np.float32]:
        """As `DecodeStream.finish`."""
        return self._process.ask(self._number, self._rate, None)


class _SoundProcess:
    """One process.

    Attributes:
        streams: numbers of those that somebody holds.
        numbers: for new ones.
    """

    def __init__(self, folder: Path, threads: int):
        context = worker_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = os.getpid(), theirs, folder, threads
        self._process = context.Process(target=_decode_for, args=arguments, name="sound", daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()
        self.pid: int = self._process.pid
        self.streams: set[int] = set()
        self.numbers = itertools.count()
        self._told: set[int] = set()  # streams that the process has
        self._lock = threading.Lock()
        self._broken = False

    @property
    def ended(self) -> bool:
        return self._broken or not self._process.is_alive()

    def ask(self, number: int, sample_rate: int, codes: NDArray[np.int32] | None) -> NDArray[np.float32]:
        """The sound of the next codes of a stream at that rate, or of its end."""
        with self._lock:
            forgotten = self._told - self.streams
            self._told = (self._told - forgotten) | {number}
            try:
                self._connection.send((number, sample_rate, codes, forgotten))
                answer = self._connection.recv_bytes()
            except (EOFError, OSError) as error:
                self._broken = True
                raise RuntimeError("the process that made this sound has ended") from error
        wave, kind = answer[:-1], answer[-1:]
        if kind == _ERROR:
            raise RuntimeError(f"the codec failed in its process:\n{wave.decode()}")
        return np.frombuffer(wave, np.float32)

    def close(self) -> None:
        self._connection.close()
        self._process.join(_GONE_SECONDS)
        self._process.kill()


def _decode_for(parent: int, connection: Connection, folder: Path, threads: int) -> None:
    """Answer until the parent closes the connection."""
    attach_worker(parent)
    torch.set_num_threads(threads)
    load: Callable[[], Codec] = cache(lambda: load_codec(folder))
    with suppress(Exception):  # the first request is told
        load()
    streams: dict[int, DecodeStream] = {}
    while True:
        try:
            number, sample_rate, codes, forgotten = connection.recv()
        except (EOFError, OSError):
            return
        for gone in forgotten:
            streams.pop(gone, None)
        try:
            if number not in streams:
                streams[number] = Resampled(load(), sample_rate).decode_stream()
            stream = streams[number]
            wave = stream.finish() if codes is None else stream.push(codes)
            answer = np.asarray(wave, np.float32).tobytes() + _WAVE
        except Exception:
            answer = traceback.format_exc().encode() + _ERROR
        connection.send_bytes(answer)
