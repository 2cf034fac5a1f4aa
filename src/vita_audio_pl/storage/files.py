"""Atomic writes: files that appear whole or not at all."""

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
ABANDONED_AFTER = 7 * 24 * 3600.0  # seconds without a write before partial files of other machines count as abandoned


def partial_name(path: Path) -> Path:
    """Temporary name of `path`: a hidden neighbour that names the writing process."""
    return path.with_name(f".{path.name}.{socket.gethostname().split('.')[0]}.{os.getpid()}{_PARTIAL}")


class AtomicFile:
    """A file that is written sequentially as `file`, and appears under its name when `finish` is called.

    Until then it is a neighbour on the same disk; for a store, a temporary file without a name.
    An error in a `with` block leaves nothing; leaving it normally without `finish` discards the file, too.
    """

    def __init__(self, path: Place):
        self.path = path
        self._partial = None if isinstance(path, RemotePath) else partial_name(path)
        if isinstance(path, RemotePath):
            path.check_writable()
        self.file = cast(BinaryIO, tempfile.TemporaryFile() if self._partial is None else open(self._partial, "wb"))

    def finish(self) -> None:
        """Flush it to disk, or upload it, and give it its name."""
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
        """Remove what was written."""
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
    """Create a file atomically unless it exists; returns whether this call did: of concurrent calls, one succeeds."""
    if isinstance(path, RemotePath):
        return path.write_new(data)
    aside = partial_name(path.with_name(f"{path.name}.{uuid.uuid4().hex}"))  # threads write one each, too
    try:
        aside.write_bytes(data)
        try:
            os.link(aside, path)
        except FileExistsError:
            # a network file system that repeats a request after a lost reply reports its own success as an error
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
    """Write `data` to a temporary file, flush it to disk unless `flush` is false, and rename it to `path`."""
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
            error.filename = error.filename or str(path)  # the kernel does not name the file that could not grow
        raise


def write_json(path: Place, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    atomic_write(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """The text that `write_json` writes. An unpaired surrogate, which UTF-8 cannot represent, becomes a JSON escape."""
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    return text.encode("utf-8", "backslashreplace")


def write_array(path: Place, array: np.ndarray) -> None:
    """Write an array as `.npy`, atomically."""
    file = io.BytesIO()
    np.save(file, array)
    atomic_write(path, file.getvalue())


def output_file(path: str | Path, setting: str = "output") -> Path:
    """The path to write a file that the user named: new, or replacing a regular file; folders are created.

    Links are followed, so that a link stays a link.

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


def output_folder(path: str | Path, setting: str = "output") -> Path:
    """The folder that the user named to write into: one that is there, or one that can be made.

    Raises:
        UserError: something else than a folder is there or on the way to it, or it cannot be written.
    """
    target = Path(os.path.realpath(path))
    there = next(place for place in (target, *target.parents) if os.path.lexists(place))
    if not there.is_dir():
        which = "which" if there == target else f"and {there}"
        raise UserError(f"{setting} is {path}, {which} is not a folder: give the name of a folder, or a new one")
    if not os.access(there, os.W_OK):
        raise UserError(f"{setting} is {path}, and {there} cannot be written: choose another folder")
    return target


def write_output(path: str | Path, data: bytes, setting: str = "output") -> None:
    """Write a file that the user named, atomically.

    Raises:
        UserError: as `output_file`.
    """
    atomic_write(output_file(path, setting), data, flush=False)


def write_output_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write an object with its `format` as JSON, like `write_output`, with keys in their order."""
    write_output(path, (json.dumps(value, indent=2) + "\n").encode())


def check_own(path: Path, sign: str) -> None:
    """Refuse to replace a file that the user did not name, unless this program made it: it then contains `sign`.

    Raises:
        UserError: something else is there.
    """
    if path.exists() and not (path.is_file() and sign.encode() in path.read_bytes()):
        raise UserError(f"{path} is there, and this program did not write it: move it away, or give another output=...")


def keep_damaged(path: Path) -> Path:
    """Rename an unusable file or folder to `<name>.damaged`, or `.damaged-2`, ...; returns the new path."""
    number = 1
    while (kept := path.with_name(f"{path.name}.damaged{'' if number == 1 else f'-{number}'}")).exists():
        number += 1
    os.replace(path, kept)
    return kept


@contextmanager
def explain_full_disk(folder: Place, what: str) -> Iterator[None]:
    """Turn a full disk into a `UserError`; writers leave nothing half-written.

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


def save_safetensors(tensors: Mapping[str, Any], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file with the rights of any other new file; the library's own can be read by nobody else."""
    from safetensors.torch import save_file  # torch

    path.touch()
    rights = path.stat().st_mode
    save_file(dict(tensors), path, metadata)
    path.chmod(rights)
