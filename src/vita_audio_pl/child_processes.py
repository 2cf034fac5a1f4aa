"""Child processes that end with their parent: workers, stages, ranks."""

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
"""Environment variable with the process id of the parent that this process must not outlive."""
_LOOK = 0.5  # seconds between checks that the parent is alive


def end_with_launcher() -> None:
    """End this process when its parent, or torchrun's agent, is killed."""
    launcher = os.environ.get(LAUNCHER, "")
    if launcher.isdigit():
        end_with(int(launcher))
    if {"TORCHELASTIC_RUN_ID", "LOCAL_RANK", "RANK"} <= os.environ.keys():
        end_with(os.getppid())


def end_with(parent: int) -> None:
    """End this process when `parent` is gone; may be called again."""
    global _watching
    if os.getppid() == parent and not _watching:
        _watching = True
        threading.Thread(target=_watch, args=(parent,), name="watch launcher", daemon=True).start()


_watching = False


class _Attached:
    """A process that starts with the run's signals blocked, so that all its threads leave them to `attach_worker`.

    If only `attach_worker` blocked them, a thread that a library has started earlier (OpenBLAS at import, others after
    a fork) would receive a SIGTERM meant for the parent, and end the worker.
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
        resource_tracker.ensure_running()  # otherwise the first start does it, which unblocks them
        super().start()


class _Forking(context.ForkContext):
    Process = _Forked


class _Spawning(context.SpawnContext):
    Process = _Spawned


def worker_context(method: str = "") -> context.BaseContext:
    """Multiprocessing context for processes that call `attach_worker` first; method: `fork` or `spawn`, empty = default."""
    method = method or multiprocessing.get_start_method()
    ours = {"fork": _Forking, "spawn": _Spawning}
    return ours[method]() if method in ours else multiprocessing.get_context(method)


def attach_worker(parent: int, *_: Any) -> None:
    """First call of a worker process (DataLoader, pool): it ends with `parent` and ignores the run's signals.

    A signal to all processes of a run, from a terminal or SLURM, would otherwise kill workers that the parent needs
    until it has saved. SIGTERM is accepted from the parent only, which ends workers with it. The process must come from
    `worker_context`.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_watch, args=(parent,), name="watch parent", daemon=True).start()


def _watch(parent: int) -> None:
    """End this process when `parent` is gone, even if its main thread waits forever.

    The kernel could send a signal instead (PR_SET_PDEATHSIG), but sends it already when the thread that started this
    process ends.
    """
    watched = os.getppid()  # for children of a forkserver the server, which ends with `parent`
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
                process.kill()  # a process that is still starting does not react to SIGTERM yet
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _begin_worker(parent: int, initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    attach_worker(parent)
    if initializer is not None:
        initializer(*arguments)
