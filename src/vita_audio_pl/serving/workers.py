"""Worker threads with deadlines: what is due first is done first, so that no player runs dry while another's buffer is full."""

import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
_URGENT = 0.25  # seconds before its deadline


def promised(work: Callable[[], T]) -> "tuple[Future[T], Callable[[], None]]":
    """A future, and the call that computes its result unless it was cancelled before."""
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    return future, run


class Workers:
    """A thread pool whose work is ordered by deadline, on the monotonic clock.

    Attributes:
        waiting: work that no thread has started.
    """

    def __init__(self, threads: int):
        self._work: queue.PriorityQueue[tuple[float, int, Callable[[], None] | None]] = queue.PriorityQueue()
        self._number = itertools.count()  # first come, first served among equal deadlines
        self._threads = [threading.Thread(target=self._run, name="sound", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        return self._work.qsize()

    @property
    def behind(self) -> bool:
        """Whether there is more work than threads, and some of it is urgent."""
        try:
            return self.waiting >= len(self._threads) and self._work.queue[0][0] < time.monotonic() + _URGENT
        except IndexError:  # a thread has just taken the last one
            return False

    def submit(self, work: Callable[[], T], due: float = 0.0) -> "Future[T]":
        """Submit `work`; without a deadline it is due at once."""
        future, run = promised(work)
        self._work.put((due, next(self._number), run))
        return future

    def close(self) -> None:
        """End the threads once all work is done."""
        for _ in self._threads:
            self._work.put((float("inf"), next(self._number), None))
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            work = self._work.get()[2]
            if work is None:
                return
            work()
            del work  # what it holds may be large, and the next may be long in coming
