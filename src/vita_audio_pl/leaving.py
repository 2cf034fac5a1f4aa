"""What a signal to leave means to a command from its first line on: a sentence, an exit status, a SLURM job put back.

Hardly anything is imported here, since the package does so before a command imports the rest.
"""

import logging
import os
import re
import resource
import signal
import sys
from contextlib import suppress
from itertools import pairwise
from types import FrameType, TracebackType

from vita_audio_pl.errors import is_out_of_memory

TRY_AGAIN = 75
"""`EX_TEMPFAIL`: rerunning the same command resumes."""
INTERRUPTED = 128 + signal.SIGINT
STATUS: dict[int, int] = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGUSR1: TRY_AGAIN}
"""Exit status after each signal, if there was nothing to save."""


def command() -> str:
    """Module that this process runs, such as `vita_audio_pl.train`; empty if the package is imported by another program."""
    named = (name for flag, name in pairwise(sys.orig_argv) if flag == "-m" and name.startswith("vita_audio_pl."))
    return next(named, "")


_BEGIN_ANEW = ("benchmark", "checksums", "generate", "plan", "serve", "talk")


def resume_hint(kept: str = "") -> str:
    """What a sentence about a stop ends with; kept: a part about what was finished. Empty where the command would begin anew."""
    return "" if command().rpartition(".")[2] in _BEGIN_ANEW else f"{kept}; rerun the same command to resume"


def leave_at_start(number: int, frame: FrameType | None) -> None:
    """Signal handler while a command is still importing, for seconds; `processes.announce_stop` replaces it."""
    # srun sends SIGTERM to the other tasks when one has ended, and that must not interrupt the requeue
    for other in STATUS:
        signal.signal(other, signal.SIG_IGN)
    print_now(f"{name_of(number)}: stopped while starting{resume_hint()}")
    requeue_unread(STATUS[number])
    os._exit(STATUS[number])


_LEAST_ADDRESSES = 800_000_000  # bytes; torch for the CPU alone maps as many
NO_MEMORY = "this machine has no memory left for it, or 'ulimit -v' allows too little: use fewer workers or smaller batches (--help-all)"


def check_surroundings() -> None:
    """Ends a command in a folder that is gone, or under a limit on addresses that torch cannot be imported under.

    Libraries ask for the folder as they are imported, and abort where they get no memory.
    """
    try:
        os.getcwd()
    except OSError as error:
        print_now(f"error: the current folder is gone, or cannot be entered ({error.strerror}): change to another one")
        os._exit(1)
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= allowed < _LEAST_ADDRESSES:
        print_now(
            f"error: 'ulimit -v' allows this process {allowed >> 20} MiB, and torch alone takes {_LEAST_ADDRESSES >> 20} MiB: "
            "raise the limit"
        )
        os._exit(1)


def tell_of_memory(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As `sys.excepthook`: a sentence where a command has no memory for what it imports, which `one_sentence` does not see."""
    if is_out_of_memory(error) and os.environ.get("HYDRA_FULL_ERROR") != "1":
        print_now(f"error: {NO_MEMORY}")
    else:
        sys.__excepthook__(kind, error, trace)


def requeue_unread(status: int) -> None:
    """As `requeue_job`, for a process that ends with `status` after a signal before it has read its settings."""
    refused = any(re.fullmatch(r"callbacks\.requeue=(false|no|off|0)", word.lower()) for word in sys.orig_argv)
    first = os.environ.get("SLURM_PROCID", "0") == "0"
    if status != INTERRUPTED and command() == "vita_audio_pl.train" and first and not refused:
        requeue_job(agreed=status == TRY_AGAIN)


def requeue_job(agreed: bool = True) -> None:
    """Requeue the SLURM job that this process belongs to, if any, once; SLURM then ends the job.

    If SLURM is ending the job already, nothing is done: a cancelled job stays cancelled, and one that was preempted
    without grace or has lost a node is requeued by SLURM itself. A job at its time limit is requeued nevertheless.

    Args:
        agreed: all ranks stop because the scheduler warned them. Otherwise a SIGTERM counts only if SLURM says that it
            preempts the job or that its time is over: srun also sends it to the other tasks when one has failed.
    """
    global _requeued, requeuing
    job = os.environ.get("SLURM_JOB_ID")
    if not job or _requeued:
        return
    _requeued = requeuing = True
    try:
        told = dict(re.findall(r"(\w+)=(\S+)", _scontrol("--oneliner", "show", "job", job)))
        ending = re.search("COMPLETING|CANCELLED|PREEMPTED|PENDING", told.get("JobState", ""))
        preempted = told.get("PreemptTime", "None")[0].isdecimal()
        if told.get("Reason") == "TimeLimit" or (not ending and (agreed or preempted)):
            _scontrol("requeue", job)
    except FileNotFoundError:
        print_now(f"SLURM job {job} is not put back into the queue: there is no scontrol here")
    finally:
        requeuing = False


_requeued = False
requeuing = False
"""Whether `requeue_job` is under way: a further signal must not end the process before it is done."""


def _scontrol(*words: str) -> str:
    """What it prints; the signals that SLURM sends to all processes of a job do not end it."""
    output, written = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)
    try:
        child = os.posix_spawnp(
            "scontrol", ["scontrol", *words], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, written, 1)]
        )
    except BaseException:
        os.close(output)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(written)
    with os.fdopen(output, errors="replace") as text:
        told = text.read()
    os.waitpid(child, 0)
    return told


def name_of(number: int) -> str:
    """Name of a signal for messages."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def print_now(sentence: str) -> None:
    """Write a line to stderr from a signal handler, which may have interrupted another write to it."""
    with suppress(OSError):  # the reader has gone
        os.write(2, f"\n{sentence}\n".encode())


QUIET = "VITA_AUDIO_PL_QUIET"


def quieten_libraries() -> None:
    """Here and in the processes that this one starts: transformers imports torchao, which tells what lacks a GPU."""
    os.environ[QUIET] = "1"
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
