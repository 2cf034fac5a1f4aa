"""A remote file as Python's own files are read, and what is raised where its storage does not answer."""

import errno
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Unreachable(OSError):
    """Storage that does not answer, or refuses: nothing is known of the file. `errors.is_machine_fault` says so, too."""

    def __init__(self, number: int, problem: str, where: str):
        super().__init__(number, problem, where)


class RemoteFile(io.RawIOBase):
    """A remote file for `io.BufferedReader`: each of its reads is a request for a range.

    Args:
        size: of the file, in bytes.
        fetch: start and number of bytes to these bytes.
        where: its name, for messages.

    Attributes:
        fault: of the last request that failed.
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes], where: str):
        self._size, self._fetch, self._where, self._at = size, fetch, where, 0
        self.fault: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: "Buffer") -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self._size - self._at))
        view[:wanted] = self._next(wanted)
        return wanted

    def readall(self) -> bytes:
        return self._next(max(0, self._size - self._at))

    def _next(self, wanted: int) -> bytes:
        if not wanted:
            return b""
        try:
            data = self._fetch(self._at, wanted)
            if len(data) != wanted:
                problem = f"{len(data)} bytes came where {wanted} were asked for from byte {self._at} on"
                raise Unreachable(errno.ENOTCONN, problem, self._where)
        except OSError as error:
            self.fault = error
            raise
        self._at += wanted
        return data


@contextmanager
def explain_faults(file: BinaryIO) -> Iterator[None]:
    """For a library that reads `file` by callbacks, in which what is raised gets lost: it is raised after all.

    Raises:
        Unreachable: a part of the remote file could not be read.
    """
    try:
        yield
    finally:
        fault = getattr(getattr(file, "raw", None), "fault", None)
        if fault is not None:
            raise fault
