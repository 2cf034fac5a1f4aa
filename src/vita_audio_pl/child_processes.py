"""Processes that end with the one that started them: workers, stages, ranks."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import context, resource_tracker
from typing import Any

from vita_audio_pl.leaving import STATUS

LAUNCHER = "VITA_AUDIO_LAUNCHER"
"""Environment variable with the number of the process that started this one, and that it must not outlive."""
_LOOK = 0.5  # seconds between two looks whether the parent is there


def end_with_launcher() -> None:
    """Ends this process when the one of ours that started it, or torchrun's agent, is killed."""
    launcher = os.environ.get(LAUNCHER, "")
    if launcher.isdigit():
        end_with(int(launcher))
    if {"TORCHELASTIC_RUN_ID", "LOCAL_RANK", "RANK"} <= os.environ.keys():
        end_with(os.getppid())


def end_with(parent: int) -> None:
    """Ends this process when `parent`, if it is that, is gone; may be called again."""
    global _watching
    if os.getppid() == parent and not _watching:
        _watching = True
        threading.Thread(target=_watch, args=(parent,), name="watch launcher", daemon=True).start()


_watching = False


class _Attached:
    """A process that begins with the run's signals blocked, so that all its threads leave them to `attach_worker`.

    Blocked there alone, a thread that a library has started before it (OpenBLAS does as it is imported, others after a
    fork) would take a SIGTERM that is meant for the parent, and end the worker.
    """

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)
        try:
            super().start()  # type: ignore[misc]  # of the process that this is mixed into
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Forked(_Attached, context.ForkProcess):
    pass


class _Spawned(_Attached, context.SpawnProcess):
    def start(self) -> None:
        resource_tracker.ensure_running()  # else the first start does it, which unblocks them
        super().start()


class _Forking(context.ForkContext):
    Process = _Forked


class _Spawning(context.SpawnContext):
    Process = _Spawned


def worker_context(method: str = "") -> context.BaseContext:
    """How processes are started whose first call is `attach_worker`; method: `fork` or `spawn`, empty = the usual one."""
    method = method or multiprocessing.get_start_method()
    ours = {"fork": _Forking, "spawn": _Spawning}
    return ours[method]() if method in ours else multiprocessing.get_context(method)


def attach_worker(parent: int, *_: Any) -> None:
    """First call of a worker process (DataLoader, pool): it ends with `parent`, and leaves the run's signals to it.

    A signal that comes to all processes of a run, as a terminal's or SLURM's, would else kill the workers that the parent
    needs until it has saved. SIGTERM is taken from the parent alone, which ends workers by it. The process is one of
    `worker_context`.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_watch, args=(parent,), name="watch parent", daemon=True).start()


def _watch(parent: int) -> None:
    """Ends this process when `parent` is gone, also where its main thread waits for ever.

    The kernel could send a signal instead (PR_SET_PDEATHSIG), but does so already when the thread that started this
    process ends.
    """
    watched = os.getppid()  # of a forkserver's children the server, which ends with `parent`
    while os.getppid() == watched and _exists(parent):
        if hasattr(signal, "sigtimedwait") and signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
            told = signal.sigtimedwait({signal.SIGTERM}, _LOOK)
            if told is not None and told.si_pid == parent:
                os._exit(0)
        else:
            time.sleep(_LOOK)
    os._exit(1)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def worker_processes(
    workers: int, method: str, initializer: Callable[..., None] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that end with this one; after Ctrl-C at once, after another failure when their call is done.

    Args:
        method: `fork` or `spawn`.
        initializer: called with `arguments` in every process.
    """
    begin = (os.getpid(), initializer, arguments)
    pool = ProcessPoolExecutor(workers, worker_context(method), _begin_worker, begin)
    try:
        yield pool
    except BaseException as error:
        if not isinstance(error, Exception):
            for process in list((pool._processes or {}).values()):
                process.kill()  # one that still starts does not look at SIGTERM yet
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _begin_worker(parent: int, initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    attach_worker(parent)
    if initializer is not None:
        initializer(*arguments)
