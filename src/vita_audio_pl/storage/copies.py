"""Local copies of remote files: copied once, cached, and checked against their checksums at every start."""

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import (
    CHECKSUMS,
    FileSum,
    find_damage,
    parse_checksums,
    read_sealed,
    refuse,
    sum_of_files,
    write_sealed,
)
from vita_audio_pl.storage.files import explain_full_disk, partial_name
from vita_audio_pl.storage.lease import hold
from vita_audio_pl.storage.node import once_a_node
from vita_audio_pl.storage.owned import Kind, Owned
from vita_audio_pl.storage.places import Place
from vita_audio_pl.storage.remote import RemotePath
from vita_audio_pl.storage.remote_file import Unreachable

log = logging.getLogger(__name__)

CACHE = "~/.cache/vita_audio_pl"
_NOTE = ".copied.json"
_COPIES_AT_A_TIME = 8


class SourceNotFound(UserError):
    """There is no such file or folder."""


def local_copy(origin: Place, cache: str | Path = CACHE) -> Path:
    """A local path of a file, or of a small folder (a tokenizer, a codec).

    A local path is returned unchanged. For a URL, the copy in `cache` is compared with the listing of the store and
    with the checksums; files that have changed or are damaged are copied again. Processes of a node share the work.

    Raises:
        SourceNotFound: it does not exist.
        UserError: it is unreachable, or its contents do not match the folder's checksums.
    """
    if not isinstance(origin, RemotePath):
        return origin
    folder = Path(cache).expanduser() / hashlib.sha256(str(origin).encode()).hexdigest()[:16]
    alone = origin.is_file_by_name()
    with reaching(origin):
        once_a_node(folder.name, partial(_bring, origin, folder, alone))
    return folder / origin.name if alone else folder


@contextmanager
def on_this_machine(places: Sequence[Place]) -> Iterator[list[Path]]:
    """Local paths of files for the duration of the block: files of a store are copied to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="vita_audio_pl-") as folder:

        def copied(number: int, origin: Place) -> Path:
            if not isinstance(origin, RemotePath):
                return origin
            origin.copy_to(target := Path(folder) / f"{number}{origin.suffix}")
            return target

        with ThreadPoolExecutor(_COPIES_AT_A_TIME) as pool:
            copies = list(pool.map(copied, range(len(places)), places))
        yield copies


@contextmanager
def reaching(origin: Place) -> Iterator[None]:
    """Turn errors of remote storage into a `UserError`, for callers that cannot continue without it.

    Raises:
        UserError: with the storage's own message.
    """
    try:
        yield
    except Unreachable as error:
        raise UserError(f"{error.filename or origin} cannot be read: {error.strerror}") from error


def copy_files(origin: RemotePath, folder: Path, names: Sequence[str]) -> None:
    """Copy files of a place into `folder`, several at a time, each atomically."""

    def copy(name: str) -> None:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = partial_name(target)
        try:
            (origin / name).copy_to(aside)
            aside.replace(target)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    with ThreadPoolExecutor(_COPIES_AT_A_TIME) as pool:
        list(pool.map(copy, names))


def _bring(origin: RemotePath, folder: Path, alone: bool) -> None:
    """Synchronise `folder` with `origin`."""
    home = origin.parent if alone else origin
    work = f"the copy of {origin}"
    with hold(folder, "copy", work, wait=True), explain_full_disk(folder, work):
        versions = _versions(home) if not alone else {origin.name: origin.stat().version} if origin.is_file() else {}
        if not versions:
            raise SourceNotFound(f"{origin} does not exist, or lists no files: check the address")
        stored = _read_sums(home)
        noted = _read_note(folder)
        mine = Owned.claim(folder, Kind("copy of remote files", (_NOTE, *versions, *noted)))
        mine.remove(*(name for name in noted if name not in versions))
        good = {name: found for name, (version, found) in noted.items() if versions.get(name) == version}
        for damage in list(find_damage(folder, good)):
            log.warning("%s; copying it again", damage)
            del good[damage.path.relative_to(folder).as_posix()]
        missing = [name for name in versions if name not in good]
        copy_files(home, folder, missing)
        sums = sum_of_files([folder / name for name in missing])
        made = {name: sums[folder / name] for name in missing}
        against = {name: stored[name] for name in made if name in stored}
        refuse(
            find_damage(folder, against),
            f"it was copied from {origin} just now, so it is damaged there or was on the way: put it there again",
        )
        files = {name: {"version": versions[name], **found.to_json()} for name, found in (good | made).items()}
        write_sealed(folder / _NOTE, {"files": files})


def _versions(home: RemotePath) -> dict[str, str]:
    """Name below `home` -> version, for all files that are not hidden."""
    found = {}
    for path in home.glob("**/*"):
        name = path.relative_to(home)
        if ".." in name.parts:
            raise UserError(f"{home} lists the name '{name}', which would lead out of the copy")
        if not any(part.startswith(".") for part in name.parts):
            found[str(name)] = path.stat().version
    if not found:  # a server that cannot list its files
        found = {name: (home / name).stat().version for name in _read_sums(home)}
    return found


def _read_sums(home: RemotePath) -> Mapping[str, FileSum]:
    path = home / CHECKSUMS
    try:
        return parse_checksums(path, path.read_bytes())
    except FileNotFoundError:
        return {}


def _read_note(folder: Path) -> dict[str, tuple[str, FileSum]]:
    """Version and checksums of the copied files; empty if unknown."""
    try:
        files = read_sealed(folder / _NOTE)["files"]
        return {str(name): (str(value["version"]), FileSum.from_json(value)) for name, value in files.items()}
    except (FileNotFoundError, UserError, ValueError, KeyError):
        return {}
