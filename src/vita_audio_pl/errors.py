"""`UserError`, the exception with a message for users, and which exceptions are faults of the machine, not of data."""

import errno
import re
import reprlib
from collections.abc import Mapping
from typing import Any

_MACHINE_ERRNOS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG,  # nowhere to write
        errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN,  # nothing left to work with
        errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENETDOWN, errno.ECONNRESET,  # no storage
    }
)  # fmt: skip
_MACHINE_ERRORS = frozenset({"OutOfMemoryError", "AcceleratorError", "CudaError"})
_NO_MEMORY = re.compile(r"can(no|')t allocate memory|failed to map segment|std::bad_alloc", re.IGNORECASE)


_LONGEST, _BEGINNING = 1400, 900  # characters of a sentence, and those before a cut


class UserError(Exception):
    """A mistake that the user can fix: one sentence that says what is wrong, where, and what to do.

    Commands print the sentence and exit with its status; library callers may catch it. A name or a value from a
    damaged file may have thousands of characters: a message longer than a screen is cut in its middle.

    Args:
        status: exit status of a command that ends with it.
    """

    def __init__(self, sentence: str = "", status: int = 2) -> None:
        if len(sentence) > _LONGEST and "\n" not in sentence:
            sentence = f"{sentence[:_BEGINNING]} ... {sentence[_BEGINNING - _LONGEST :]}"
        super().__init__(sentence)
        self.status = status


def errno_of(error: BaseException) -> int | None:
    """The operating system's number of `error`, or of what it was raised from, also where a library only quotes it."""
    cause: BaseException | None = error
    while cause is not None:
        if (number := _own_errno(cause)) is not None:
            return number
        cause = cause.__cause__
    return None


def _own_errno(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return None if type(error).__module__ == "ssl" else error.errno  # OpenSSL's own numbers mean something else
    if quoted := re.search(r"\(os error (\d+)\)", str(error)):  # libraries in Rust: safetensors, tokenizers
        return int(quoted.group(1))
    return errno.EAGAIN if isinstance(error, RuntimeError) and "can't start new thread" in str(error) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine, or a limit on this process, has no memory left; torch and the dynamic linker only say so in words."""
    if isinstance(error, MemoryError) or errno_of(error) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ImportError) and _NO_MEMORY.search(str(error)) is not None


_PEER_GONE = re.compile(r"gloo.*(Connection closed|Connection reset)|NCCL.*remote process exited", re.DOTALL)


def peer_is_gone(error: BaseException) -> bool:
    """Whether a collective failed because another rank has exited."""
    return _PEER_GONE.search(str(error)) is not None


def is_machine_fault(error: BaseException) -> bool:
    """Whether the machine failed (memory, disk, file handles, network, GPU), not the sample or file being read.

    Such an error says nothing about the data: work has to stop and can be taken up again, nothing may be left out for
        it.
    """
    if _own_errno(error) in _MACHINE_ERRNOS:
        return True
    if isinstance(error, OSError):
        return False
    if is_out_of_memory(error) or not isinstance(error, Exception):
        return True
    # torch's errors by name: workers that read text alone never import torch
    return any(kind.__name__ in _MACHINE_ERRORS for kind in type(error).__mro__)


def kind_in_words(value: Any) -> str:
    """Type and value from a file in words for a message: `null`, `the number 7`, `a list`; never a Python type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value!r:.40}"
    kinds = {"text": str, "bytes": bytes | bytearray, "an object": Mapping, "a list": list | tuple | set}
    return next((words for words, kind in kinds.items() if isinstance(value, kind)), f"a {type(value).__name__}")


class _Shown(reprlib.Repr):
    """As Python writes a value, of a bounded length (what references repeat may be endless), and with JSON's words."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 200

    def repr_NoneType(self, value: None, level: int) -> str:
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:
        return str(value).lower()


def shown(value: Any, most: int = 100) -> str:
    """A value from a file for a message, cut after `most` characters."""
    text = _Shown().repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
