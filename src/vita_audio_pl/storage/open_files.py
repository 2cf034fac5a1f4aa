"""Random reads in many files through a bounded number of open ones."""

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.storage.remote import RemotePath

_MOST_WANTED = 65_536
_FEWEST = 16


class OpenFiles:
    """Reads pieces of files and keeps those files open that were used last. Threads may share it; forks may go on.

    Args:
        most: files kept open; None takes a quarter of what the process may open.
    """

    def __init__(self, most: int | None = None):
        self._most = most
        self._files: OrderedDict[str, _Handle] = OrderedDict()

    @cached_property
    def most(self) -> int:
        return self._most or _handles_of_process() // 4

    def read(self, path: Path | RemotePath | str, start: int, size: int) -> bytes:
        """At most `size` bytes from byte `start` on; fewer where the file ends.

        Raises:
            OSError: the file cannot be opened or read, or (EMFILE) the process has no handle left although all of ours were
                given back.
        """
        if isinstance(path, RemotePath):
            return path.read_at(start, size)
        return os.pread(self._handle(str(path)).descriptor, size, start)

    def forget_file(self, path: Path | RemotePath | str) -> None:
        """Closes a file, which may have been replaced."""
        self._files.pop(str(path), None)

    def forget(self, folder: Path) -> None:
        """Closes the files of a folder, which may have been replaced."""
        for path in [path for path in self._files if os.path.dirname(path) == str(folder)]:
            self._files.pop(path, None)

    def _handle(self, path: str) -> "_Handle":
        handle = self._files.get(path)
        if handle is None:
            handle = self._files[path] = self._opened(path)
            while len(self._files) > self.most:
                self._files.popitem(last=False)
        else:
            try:
                self._files.move_to_end(path)
            except KeyError:  # another thread has just given it up; this one still holds it
                pass
        return handle

    def _opened(self, path: str) -> "_Handle":
        try:
            return _Handle(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        self._files.clear()  # others may have taken the rest
        try:
            return _Handle(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            raise OSError(
                error.errno, f"no file handle is left to open {path}: raise the limit of {soft} with `ulimit -n 65536`"
            ) from error


class _Handle:
    """An open file, closed when the last who uses it lets go."""

    def __init__(self, path: str):
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.descriptor >= 0:
            close(self.descriptor)  # at the interpreter's end `os` may be gone already


def _handles_of_process() -> int:
    """Files that this process may open, after its limit was raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_WANTED if hard == resource.RLIM_INFINITY else min(hard, _MOST_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(4 * _FEWEST, _MOST_WANTED if soft == resource.RLIM_INFINITY else soft)


open_files = OpenFiles()
"""All that this process reads in pieces goes through here."""


def read_whole(path: Path | RemotePath | str, start: int, size: int, remedy: str) -> bytes:
    """Just `size` bytes of a file that had them when it was opened.

    Args:
        remedy: what a person can do where it has been cut or removed since.

    Raises:
        UserError: it has.
        OSError: the machine cannot read now.
    """
    data = b""
    while len(data) < size:
        try:
            more = open_files.read(path, start + len(data), size - len(data))  # one call reads 2 GiB at most
        except OSError as error:
            if is_machine_fault(error):
                raise
            raise UserError(
                f"{path} could be opened before, and cannot be read now ({error.strerror}): {remedy}"
            ) from None
        if not more:
            raise UserError(f"{path} was cut while it was in use, to {start + len(data)} bytes or less: {remedy}")
        data = data + more if data else more
    return data
