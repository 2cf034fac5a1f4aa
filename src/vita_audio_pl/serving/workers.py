"""Threads that make sound and hear: what is due first is done first, so that no player runs dry while another's is filled ahead."""

import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def promised(work: Callable[[], T]) -> "tuple[Future[T], Callable[[], None]]":
    """What `work` will give, and the call that does it, unless the future was cancelled before."""
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
    """A pool of threads whose work is ordered by when it is due, by the monotonic clock.

    Attributes:
        waiting: pieces of work that no thread has begun.
    """

    def __init__(self, threads: int):
        self._work: queue.PriorityQueue[tuple[float, int, Callable[[], None] | None]] = queue.PriorityQueue()
        self._number = itertools.count()  # equally due, first come first served
        self._threads = [threading.Thread(target=self._run, name="sound", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        return self._work.qsize()

    @property
    def behind(self) -> bool:
        """Whether there is more to do than threads to do it."""
        return self.waiting >= len(self._threads)

    def submit(self, work: Callable[[], T], due: float = 0.0) -> "Future[T]":
        """Has `work` done; without a time it is due at once."""
        future, run = promised(work)
        self._work.put((due, next(self._number), run))
        return future

    def close(self) -> None:
        """Ends the threads once all is done."""
        for _ in self._threads:
            self._work.put((float("inf"), next(self._number), None))
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (work := self._work.get()[2]) is not None:
            work()
