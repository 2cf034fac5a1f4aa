"""Files that appear whole or not at all."""

import errno
import io
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vita_audio_pl.errors import UserError

_PARTIAL = ".partial"
_ABANDONED_AFTER = 7 * 24 * 3600.0  # seconds without a write, for partial files of other machines


def partial_name(path: Path) -> Path:
    """Where `path` is written until it is complete: a hidden neighbour that names the writing process."""
    return path.with_name(f".{path.name}.{socket.gethostname().split('.')[0]}.{os.getpid()}{_PARTIAL}")


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` aside, flushes it to the disk and renames it to `path`."""
    partial = partial_name(path)
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, whole or not at all."""
    write_whole(path, (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode())


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes an array as `.npy`, whole or not at all."""
    file = io.BytesIO()
    np.save(file, array)
    write_whole(path, file.getvalue())


@contextmanager
def full_disk_is_told(folder: Path, what: str) -> Iterator[None]:
    """Turns a full disk into a sentence; whoever writes leaves nothing half-written.

    Raises:
        UserError: no space is left in `folder`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"no space left in {folder} while writing {what}: free some and give the same command again; what is "
            "finished is kept and nothing half-written is left"
        ) from error


def remove_abandoned(folder: Path) -> None:
    """Removes partial files that nobody is writing any more: of dead processes here, or a week old."""
    here = socket.gethostname().split(".")[0]
    for path in folder.glob(f".*{_PARTIAL}"):
        host, pid = path.name.removesuffix(_PARTIAL).rsplit(".", 2)[-2:]
        try:
            gone = host == here and pid.isdigit() and not Path(f"/proc/{pid}").exists()
            if gone or time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                path.unlink()
        except FileNotFoundError:
            continue  # its writer has just finished
