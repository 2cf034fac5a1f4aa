"""Recordings that pages play: small regular audio files below the folder of the file that names them.

Rows of results may come from anybody, and a page holds what they name for all who get the page: nothing else is ever read.
"""

import os
import stat
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError

AUDIO_TYPES = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"}
"""Media types by the endings of names."""
LARGEST = 8 << 20
"""Bytes of a recording."""


def recording_below(folder: Path, name: Any) -> Path:
    """The recording that a file in `folder` names, links resolved.

    Raises:
        UserError: it is not below `folder`, or nothing that a page plays; the sentence begins with the name.
    """
    shown = f"{name!s:.200}"
    try:
        path: Path = (folder / name).resolve(strict=True)
        top = folder.resolve()
    except (OSError, ValueError, TypeError, RuntimeError):  # too long a name, a NUL, no text, links in a circle
        raise UserError(f"{shown} is not there") from None
    if not path.is_relative_to(top):
        raise UserError(f"{shown} lies outside {folder}, and a page holds only what is below")
    _check(path, shown)
    return path


def read_recording(path: Path) -> bytes:
    """What a recording holds.

    Raises:
        UserError: it cannot be read, or is nothing that a page plays.
    """
    _check(path, str(path))
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if len(content) > LARGEST:
        raise UserError(f"{path} grows while it is read")
    return content


def _check(path: Path, shown: str) -> None:
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{shown} cannot be read ({error.strerror})") from None
    if path.suffix.lower() not in AUDIO_TYPES:
        raise UserError(f"{shown} is not an audio file ({', '.join(AUDIO_TYPES)})")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{shown} is not a regular file")
    if found.st_size > LARGEST:
        raise UserError(f"{shown} has {found.st_size:,} bytes, and a page holds recordings of {LARGEST >> 20} MiB")
