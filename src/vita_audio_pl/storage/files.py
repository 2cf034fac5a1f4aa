"""Files that appear whole or not at all."""

import errno
import io
import json
import os
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.places import Place
from vita_audio_pl.storage.remote import RemotePath

_PARTIAL = ".partial"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
ABANDONED_AFTER = 7 * 24 * 3600.0  # seconds without a write, for partial files of other machines


def partial_name(path: Path) -> Path:
    """Where `path` is written until it is complete: a hidden neighbour that names the writing process."""
    return path.with_name(f".{path.name}.{socket.gethostname().split('.')[0]}.{os.getpid()}{_PARTIAL}")


class AtomicFile:
    """A file that is written from start to end, `file`, and appears whole under its name once `finish` is called.

    Until then it lies in a neighbour on the same disk; one that is to go to a store, in a temporary file without a name.
    An error in a `with` block leaves nothing; its end without one does not finish the file.
    """

    def __init__(self, path: Place):
        self.path = path
        self._partial = None if isinstance(path, RemotePath) else partial_name(path)
        if isinstance(path, RemotePath):
            path.check_writable()
        self.file = cast(BinaryIO, tempfile.TemporaryFile() if self._partial is None else open(self._partial, "wb"))

    def finish(self) -> None:
        """Forces it onto the disk, or sends it, and gives it its name."""
        self.file.flush()
        if isinstance(self.path, RemotePath):
            size = self.file.seek(0, io.SEEK_END)
            self.file.seek(0)
            self.path.write_from(f"/dev/fd/{self.file.fileno()}", size)
            self.file.close()
            return
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(cast(Path, self._partial), self.path)

    def abandon(self) -> None:
        """Removes what was written."""
        self.file.close()
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> "AtomicFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abandon()


def create_new(path: Place, data: bytes) -> bool:
    """Writes a file, whole, unless there is one; whether this call did: of all who try at one time, one succeeds."""
    if isinstance(path, RemotePath):
        return path.write_new(data)
    aside = partial_name(path.with_name(f"{path.name}.{uuid.uuid4().hex}"))  # threads, too, write one each
    try:
        aside.write_bytes(data)
        try:
            os.link(aside, path)
        except FileExistsError:
            # a network file system that repeats a request whose answer was lost says so of its own success
            return path.read_bytes() == data
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with open(path, "xb") as file:
                file.write(data)
    except (FileExistsError, FileNotFoundError):
        return False
    finally:
        aside.unlink(missing_ok=True)
    return True


def atomic_write(path: Place, data: bytes, flush: bool = True) -> None:
    """Writes `data` aside, forces it onto the disk unless `flush` is false, and renames it to `path`."""
    if isinstance(path, RemotePath):
        path.write_bytes(data)
        return
    partial = partial_name(path)
    try:
        with open(partial, "wb") as file:
            file.write(data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # the kernel does not say which file could not grow
        raise


def write_json(path: Place, value: Any) -> None:
    """Writes `value` as JSON, whole or not at all."""
    atomic_write(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """What `write_json` writes. Half a surrogate pair, which UTF-8 cannot hold, becomes the escape that JSON has for it."""
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    return text.encode("utf-8", "backslashreplace")


def write_array(path: Place, array: np.ndarray) -> None:
    """Writes an array as `.npy`, whole or not at all."""
    file = io.BytesIO()
    np.save(file, array)
    atomic_write(path, file.getvalue())


def output_file(path: str | Path, setting: str = "output") -> Path:
    """Where a file that a person named is written: a new file, or a regular one that it replaces; folders are made.

    Links are followed, so that a link stays one.

    Raises:
        UserError: a folder, a device, a pipe or a socket is there, or a folder on the way cannot be made or written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        what = "a folder" if target.is_dir() else "a device, a pipe or a socket"
        raise UserError(f"{setting} is {path}, which is {what}: give the name of a file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{setting} is {path}, and {target.parent} cannot be made ({error.strerror})") from None
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"{setting} is {path}, and {target.parent} cannot be written: choose another folder")
    return target


def write_output(path: str | Path, data: bytes, setting: str = "output") -> None:
    """Writes a file that a person named, whole or not at all.

    Raises:
        UserError: as `output_file`.
    """
    atomic_write(output_file(path, setting), data, flush=False)


def write_output_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Writes an object, which says its `format`, as JSON; as `write_output`, with the keys in their order."""
    write_output(path, (json.dumps(value, indent=2) + "\n").encode())


def check_own(path: Path, sign: str) -> None:
    """Refuses to replace a file that nobody named in this command, unless this program made it: it then holds `sign`.

    Raises:
        UserError: something else is there.
    """
    if path.exists() and not (path.is_file() and sign.encode() in path.read_bytes()):
        raise UserError(f"{path} is there, and this program did not write it: move it away, or give another output=...")


def keep_damaged(path: Path) -> Path:
    """Renames a file or folder that cannot be used to `<name>.damaged`, or `.damaged-2`, ...; its new place."""
    number = 1
    while (kept := path.with_name(f"{path.name}.damaged{'' if number == 1 else f'-{number}'}")).exists():
        number += 1
    os.replace(path, kept)
    return kept


@contextmanager
def explain_full_disk(folder: Place, what: str) -> Iterator[None]:
    """Turns a full disk into a sentence; whoever writes leaves nothing half-written.

    Raises:
        UserError: no space is left in `folder`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        full = tempfile.gettempdir() if isinstance(folder, RemotePath) else folder
        raise UserError(
            f"no space left in {full} while writing {what}: free some and rerun the command; what is "
            "finished is kept and nothing half-written is left"
        ) from error
