"""Work that the processes of a node share."""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def once_a_node(name: str, work: Callable[[], None]) -> None:
    """Does `work`, unless another process of this node finished it between our asking and our turn.

    Ranks that start together wait for the first of them; whoever comes later does it again. Where the node has no
    folder for such notes, everybody works.

    Args:
        name: of the work, a plain file name.
    """
    asked = time.time_ns()
    try:
        note = _open_note(name)
        fcntl.flock(note, fcntl.LOCK_EX)
    except OSError:
        return work()
    with note:
        finished = note.read()
        if finished.isdigit() and int(finished) >= asked:
            return
        work()
        note.seek(0)
        note.write(b"%020d" % time.time_ns())  # of one length, so that it covers what was there


def _open_note(name: str) -> BinaryIO:
    folder = Path(tempfile.gettempdir()) / f"vita_audio_pl-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise PermissionError(f"{folder} is another user's")
    return os.fdopen(os.open(folder / f"{name}.verified", os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
