"""Parent and child processes: signals are forwarded to children, and none outlives its parent."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from vita_audio_pl import leaving
from vita_audio_pl.child_processes import LAUNCHER
from vita_audio_pl.errors import UserError
from vita_audio_pl.leaving import (
    INTERRUPTED,
    STATUS,
    TRY_AGAIN,
    command,
    name_of,
    print_now,
    requeue_job,
    requeue_unread,
    resume_hint,
)

TORCHRUN = (
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""torchrun's environment variables that are used here."""
SAME_PRESS_SECONDS = (
    2.0  # seconds: a terminal's Ctrl-C comes to all processes, and from those that forward it once more
)


@contextmanager
def requeue_on_signal(wanted: bool) -> Iterator[None]:
    """If SIGTERM or SIGUSR1 ends the block, requeue the SLURM job: rerunning the same command resumes.

    The signal also ends a block whose main thread waits in C, where Python runs no handler: for ranks that have left,
    or for a disk. It is left alone where another handler than `announce_stop`'s sees to it, as between two steps.
    """
    global _requeue
    was, _requeue = _requeue, wanted or bool(_requeue)
    try:
        with _heard_in_c():
            yield
        _requeue = was
    except BaseException as end:
        if _stopped is not None:  # whatever a library has made of it on its way
            status: int | str | None = _stopped.status
        else:
            status = end.status if isinstance(end, UserError) else end.code if isinstance(end, SystemExit) else None
        if wanted and status in (TRY_AGAIN, STATUS[signal.SIGTERM]):
            requeue_job(agreed=status == TRY_AGAIN)
        raise


_requeue: bool | None = (
    None  # whether a signal that ends this process puts its SLURM job back; None until settings are read
)


@contextmanager
def _heard_in_c() -> Iterator[None]:
    """Ends the process where `_stop` does not run within `_DEAF` seconds after its signal, or has not ended it in `_UNWIND`."""
    global _listens_in
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _listens_in is None:
        os.register_at_fork(after_in_child=_hear_no_more)
    arrived, wake = os.pipe()
    os.set_blocking(wake, False)
    before, _listens_in = signal.set_wakeup_fd(wake, warn_on_full_buffer=False), os.getpid()
    threading.Thread(target=_listen, args=(arrived,), name="listen for signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        _listens_in = 0
        os.close(wake)


_listens_in: int | None = None  # process; 0 where no block is open


def _hear_no_more() -> None:
    """A forked process tells the one that it was forked from of no signals."""
    if _listens_in:
        signal.set_wakeup_fd(-1)


def _listen(arrived: int) -> None:
    with os.fdopen(arrived, "rb", buffering=0) as signals:
        while byte := signals.read(1):
            number, came = byte[0], time.monotonic()
            while _is_deaf(number, came) and time.monotonic() < came + _DEAF:
                time.sleep(0.1)
            if _is_deaf(number, came) and _stopped is not None:  # its status is decided already
                _end_now(_stopped.status)
            elif _is_deaf(number, came):
                print_now(f"{name_of(number)}: stopped while waiting{resume_hint()}")
                _end_now(STATUS[number])
            while _stopped is not None and signal.getsignal(number) is _stop:
                time.sleep(0.1)  # in its sleep the process ends
                if time.monotonic() > came + _UNWIND:
                    _end_now(_stopped.status)


def _is_deaf(number: int, came: float) -> bool:
    """Whether a signal is `_stop`'s to see to, which has not run since."""
    return number in STATUS and signal.getsignal(number) is _stop and _ran < came - 1.0 and _done is None


_DEAF, _UNWIND = 5.0, 20.0  # seconds; schedulers kill after thirty
_ran = 0.0  # when `_stop` ran last


def _end_now(status: int) -> None:
    if leaving.requeuing:
        return  # the main thread puts the job back, and ends with its own status
    if _requeue is None:
        requeue_unread(status)
    elif _requeue and status in (TRY_AGAIN, STATUS[signal.SIGTERM]):
        requeue_job(agreed=status == TRY_AGAIN)
    os._exit(status)


@contextmanager
def announce_stop() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGUSR1 say in one sentence where the command stops, unwind, and decide its exit status.

    The sentence is written at once, by the signal's handler; one more signal ends the process there and then. Blocks
    may be nested. Once a command's outermost block has ended, so has the command: a later signal changes its status no
    more.

    Raises:
        SystemExit: after a signal, with 130, 143 or 75, whatever else left the block.
    """
    global _stopped, _done
    main = threading.current_thread() is threading.main_thread()
    outermost = main and signal.getsignal(signal.SIGTERM) is not _stop
    handlers = {number: signal.signal(number, _stop) for number in STATUS} if outermost else {}
    status: Any = 0
    try:
        if main and _done is not None:  # a job of a sweep was done, and this is the next one
            came, _done = _done.came, None
            if came is not None:
                signal.raise_signal(came[0])
        yield
    except BaseException as error:
        status = error.status if isinstance(error, UserError) else getattr(error, "code", None)
        if _stopped is None:
            raise
    finally:
        status = status if _stopped is None else _stopped.status
        if outermost and _stopped is not None and _requeue is None:
            requeue_unread(_stopped.status)
        for number, handler in handlers.items():
            signal.signal(number, _after(number, status) if command() else handler)
        stopped = _stopped
        if outermost:
            _stopped = _done = None
    if stopped is not None:
        raise SystemExit(stopped.status)


@dataclass(frozen=True)
class _Stopped:
    """When the signal came, and the status that it means."""

    came: float
    status: int


_stopped: _Stopped | None = None


def leave_with(status: int) -> None:
    """What was under way is saved, and this process ends with `status`: signals from now on do not change that."""
    global _stopped
    if signal.getsignal(signal.SIGTERM) is _stop:  # else nobody would forget it again
        _stopped = _Stopped(time.monotonic(), status)


def leave_done() -> None:
    """The command has done and said what it was asked for: signals from now on change neither its words nor its status.

    Where another block of `announce_stop` begins nevertheless, as for the next job of a sweep, a signal that has come stops it.
    """
    global _done
    if signal.getsignal(signal.SIGTERM) is _stop:  # else nobody would forget it again
        _done = _Done()


@dataclass
class _Done:
    """That all is done, and the signal that has come since, with its time."""

    came: tuple[int, float] | None = None


_done: _Done | None = None


def _after(number: int, status: Any) -> Any:
    """What a signal does where a command has ended but for its last words.

    Handlers would not do: as it ends, Python gives every signal that has one its default, which kills.
    """
    if number != signal.SIGINT:
        return signal.SIG_IGN
    return partial(_ended, status) if status in (0, *STATUS.values()) else signal.SIG_DFL


def _ended(status: int, number: int, frame: FrameType | None) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)


def _stop(number: int, frame: FrameType | None) -> None:
    global _stopped, _ran
    _ran = time.monotonic()
    if _done is not None and _stopped is None:
        if _done.came is None:
            _done.came = number, _ran
        elif number == _done.came[0] == signal.SIGINT and _ran - _done.came[1] > SAME_PRESS_SECONDS:
            _end_now(STATUS[number])
        return
    if _stopped is not None:
        if _ran - _stopped.came > SAME_PRESS_SECONDS:
            _end_now(STATUS[number] if number == signal.SIGINT else _stopped.status)
        return
    _stopped = _Stopped(_ran, STATUS[number])
    print_now(
        f"{name_of(number)}: stopped in {_place(frame)}{resume_hint('; what is finished is kept')} (one more ends it at once)"
    )
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(STATUS[number])


def _place(frame: FrameType | None) -> str:
    """The innermost module of this package that a frame is in."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.startswith("vita_audio_pl.") and name != __name__:
            return name
        frame = frame.f_back
    return "its start"


def run_command(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run a command to its end and return its exit status, 128 + N if signal N killed it (75 for SIGUSR1).

    Ctrl-C, SIGTERM and SIGUSR1 are forwarded to it, and it decides what they mean: this process keeps waiting. It ends
    when this process is killed, if it is one of ours. A command that finishes despite a signal counts as stopped.
    """
    came: list[int] = []
    child: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for process in child:
            process.send_signal(number)

    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, forward) for number in STATUS}
    try:
        started = subprocess.Popen(command, env={**(environment or os.environ), LAUNCHER: str(os.getpid())})
        child.append(started)
        for number in came:
            started.send_signal(number)
        status = started.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if status == 0 and came:
        return INTERRUPTED if came[0] == signal.SIGINT else TRY_AGAIN
    return status if status >= 0 else STATUS.get(-status, 128 - status)


def check_status(status: int, what: str, where: str = "") -> None:
    """Raise a `UserError` with `status` unless it is 0.

    Args:
        what: ended with it.
        where: more to say of it, in brackets.
    """
    if status:
        stopped = status in STATUS.values()
        ended = "was stopped" if stopped else f"ended with status {status}"
        above = "" if stopped else "; see its message above"
        raise UserError(
            f"{what} {ended}{f' ({where})' if where else ''}{above}; rerun the same command to resume",
            status,
        )


def check_agent(environment: Mapping[str, str] = os.environ, patience: float = 10.0) -> None:
    """Refuse torchrun's variables if its agent is gone: the agent's store for its ranks would be reachable.

    Args:
        patience: seconds in which the store must answer.

    Raises:
        UserError: the agent does not answer, so this process would wait for others that never come.
    """
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    host, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=max(1.0, deadline - time.monotonic())).close()
            return
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline or isinstance(error, ValueError):
                names = " ".join(name for name in TORCHRUN if name in environment)
                raise UserError(
                    f"RANK={environment.get('RANK', '')} and TORCHELASTIC_RUN_ID say that torchrun started this process, but "
                    f"torchrun does not answer at MASTER_ADDR:MASTER_PORT ({host}:{port}): if they are left over from another "
                    f"launch, unset {names}"
                ) from None
            time.sleep(0.5)
