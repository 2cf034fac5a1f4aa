"""How a command ends when something goes wrong: one sentence, an exit status, and a file with the traceback if it helps."""

import codecs
import errno
import io
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vita_audio_pl.errors import UserError, errno_of, is_out_of_memory, peer_is_gone
from vita_audio_pl.leaving import NO_MEMORY, resume_hint
from vita_audio_pl.processes import announce_stop
from vita_audio_pl.storage.secrets import without_credentials

STATUS_OF_FAILURE = 1
STATUS_OF_INTERRUPT = 128 + signal.SIGINT
STATUS_OF_CLOSED_PIPE = 128 + signal.SIGPIPE

_AGAIN = "rerun the same command to resume"
_SENTENCES = {
    errno.ENOSPC: "no space is left for {file}: free some, then " + _AGAIN,
    errno.EDQUOT: "the quota is used up, so {file} cannot be written: free some space, then " + _AGAIN,
    errno.EFBIG: "{file} would be larger than this process or file system allows (see 'ulimit -f'): raise the limit, then "
    + _AGAIN,
    errno.EACCES: "no permission for {file}: change its owner or mode, or choose another folder",
    errno.EPERM: "no permission for {file}: change its owner or mode, or choose another folder",
    errno.EROFS: "{file} is on a read-only file system: choose another folder",
    errno.EAGAIN: "this machine cannot start more threads or processes (see 'ulimit -u'): use fewer workers, then "
    + _AGAIN,
    errno.EMFILE: "this process may not open more files (at {file}): raise the limit with 'ulimit -n 65536', then "
    + _AGAIN,
    errno.ENFILE: "this machine cannot open more files (at {file}); " + _AGAIN + " once others have ended",
    errno.ENAMETOOLONG: "the name of {file} is too long for this file system: choose a shorter one",
    errno.EIO: "reading or writing {file} failed in the device below (I/O error): check the disk or the network share",
    errno.ENOTCONN: "{file} cannot be reached ({why}): check the address, the network and the credentials, then "
    + _AGAIN,
    errno.ESTALE: "{file} has gone from its network share (stale file handle): check the mount, then " + _AGAIN,
}


@contextmanager
def one_sentence(runs: str = "runs") -> Iterator[None]:
    """Turn whatever leaves the block into a sentence on stderr and an exit status.

    A `UserError` ends with its status (2), Ctrl-C with 130, SIGTERM with 143, SIGUSR1 with 75, a closed pipe with 141 and
    silence, everything else with 1, also where what was printed could not be written. What nobody expected also leaves a
    file with its traceback. `HYDRA_FULL_ERROR=1` lets exceptions through as they are.

    Args:
        runs: folder of runs; tracebacks go to `errors/` in it, or to the temporary folder where it cannot be written.
    """
    try:
        with announce_stop(), _all_is_printed():
            yield
    except SystemExit:
        raise
    except KeyboardInterrupt:  # in a thread, where no handler has said so
        _print(f"interrupted{resume_hint()}")
        raise SystemExit(STATUS_OF_INTERRUPT) from None
    except BrokenPipeError:
        _print_no_more()
        raise SystemExit(STATUS_OF_CLOSED_PIPE) from None
    except BaseException as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if isinstance(error, UserError):
            _print(f"error: {error}")
            raise SystemExit(error.status) from None
        _print(f"error: {_sentence(error, runs)}")
        raise SystemExit(STATUS_OF_FAILURE) from None


@contextmanager
def _all_is_printed() -> Iterator[None]:
    """Whatever the block printed is written when it ends; Python itself would say so at exit, in its own words.

    Raises:
        UserError: standard output takes no more, and nothing else went wrong; BrokenPipeError: its reader has gone.
    """
    ended: BaseException | None = None
    try:
        yield
    except BaseException as error:
        ended = error
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
            if isinstance(ended, OSError) and ended.filename is None:  # perhaps a `print` that was not buffered
                print(flush=True)
    except OSError as error:
        _print_no_more()
        if _is_the_print(ended, error):
            if isinstance(error, BrokenPipeError):
                raise
            raise UserError(
                f"standard output cannot be written ({error.strerror}), so what this command prints is lost; what it wrote into "
                "files is there",
                STATUS_OF_FAILURE,
            ) from error
    if ended is not None:
        raise ended


def _is_the_print(ended: BaseException | None, failed: OSError) -> bool:
    """Whether nothing went wrong in a block but its prints, which `failed`."""
    if isinstance(ended, OSError):
        return ended.filename is None and ended.errno == failed.errno
    return ended is None or (isinstance(ended, SystemExit) and not ended.code)


def _print_no_more() -> None:
    """What is still buffered cannot be written; Python would complain about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def require_streams() -> None:
    """Refuse to start with standard output closed; standard input and error, where closed, are opened to nowhere.

    What a stream's encoding cannot hold is escaped, rather than an answer lost for one letter. The first files that a process opens take the numbers of streams that are closed, and whatever a library or a child process
    prints would go into them.

    Raises:
        UserError: standard output is closed.
    """
    for number, flags in ((0, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is None:
        raise UserError(
            "standard output is closed, so what this command prints would be lost: send it to a file, or to /dev/null"
        )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            bare = codecs.lookup(stream.encoding).name == "ascii"
            with suppress(OSError):  # one that another has been put behind since it was opened
                stream.reconfigure(encoding="utf-8" if bare else None, errors="backslashreplace")


def _sentence(error: BaseException, runs: str) -> str:
    if is_out_of_memory(error):
        return NO_MEMORY
    if (number := errno_of(error)) in _SENTENCES:
        return _SENTENCES[number].format(file=getattr(error, "filename", None) or "a file", why=os.strerror(number))
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"the GPU has no memory left for it ({str(error).partition('.')[0]}): lower trainer.rows_per_device, or "
            "set model.activation_checkpointing=all; python -m vita_audio_pl.plan estimates what fits"
        )
    if peer_is_gone(error):
        return (
            "another rank has ended, and this one cannot continue without it: see the message of that rank; " + _AGAIN
        )
    where = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(where[-1].filename).name}:{where[-1].lineno}" if where else ""
    text = " ".join(str(error).split())
    told = f"{type(error).__name__}{place}: {text[:300]}{'...' if len(text) > 300 else ''}".rstrip(": ")
    return f"{told}; this is a bug: please report it with {_written(error, runs)}, which has the traceback"


def _written(error: BaseException, runs: str) -> Path:
    """The file that holds the traceback of `error`."""
    text = without_credentials(" ".join(sys.argv) + "\n\n" + "".join(traceback.format_exception(error)))
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (Path(runs) / "errors", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / name
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return path.absolute()
    print(text, file=sys.stderr)
    return Path("the lines above")


def _print(text: str) -> None:
    try:
        print(without_credentials(text), file=sys.stderr, flush=True)
    except OSError:  # whoever read it has gone
        pass
