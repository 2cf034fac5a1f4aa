"""Places of files: a `Path` on this machine, or a `RemotePath` behind the URL of an object store or a web server.

Both have the same methods, as far as this program uses any, so nobody who reads or writes asks which of them it is. What a
store cannot do (rename, links, locks) is done otherwise in `files`, `owned` and `lease`.
"""

import os
from pathlib import Path, PurePosixPath
from typing import TypeAlias, TypeVar, cast
from urllib.parse import unquote

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.remote import RemotePath

Place: TypeAlias = Path | RemotePath
PlaceT = TypeVar("PlaceT", bound=Place)


def place(name: str | Path, setting: str = "a place") -> Place:
    """The place of a path or a URL, which a person gave as `setting`; `file://` is a path.

    Raises:
        UserError: it is a command (`pipe:`), or of a protocol that cannot be used.
    """
    text = str(name)
    protocol = text.partition(":")[0].lower()
    if protocol == "pipe" or text.strip().startswith("|"):
        raise UserError(f"{setting} is '{text}': commands are not run; give a folder or a URL")
    if "://" not in text:
        return Path(name)
    if protocol in ("file", "local"):
        return Path(unquote(text.partition("://")[2]))
    try:
        return RemotePath.of(text)
    except UserError as error:
        raise UserError(f"{setting} is {error}") from None


def relative(path: Place, root: Place) -> PurePosixPath:
    """The way from `root` to what lies below it."""
    if isinstance(path, RemotePath):
        return path.relative_to(root)
    return PurePosixPath(path.relative_to(cast(Path, root)))


_POINTER = b"version https://git-lfs.github.com/spec/"
_LARGEST_POINTER = 1024  # bytes


def why_pointer(path: Place) -> str:
    """A sentence on a file that Git left in the place of the file itself; empty where `path` is none, or cannot be read."""
    try:
        if path.stat().st_size > _LARGEST_POINTER:
            return ""
        with path.open("rb") as file:
            if file.read(len(_POINTER)) != _POINTER:
                return ""
    except OSError:  # reading it later will report the error
        return ""
    return f"{path} only points to the file, which Git LFS has not fetched: run git lfs pull there"


def names_in(folder: Place) -> list[str]:
    """Names of what lies in a folder, sorted; none where it is not there."""
    if isinstance(folder, RemotePath):
        return folder.names()
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
