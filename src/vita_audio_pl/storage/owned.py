"""Folders that carry our mark, the only ones that a command empties, replaces or removes.

Two sorts: a folder that is filled over time says by the patterns of its `Kind` what is written there, and a folder that is
written once and renamed (`atomic_folder`) lists its files in its mark. What neither names is not ours, and is never removed.
"""

import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, cast

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import CHECKSUMS
from vita_audio_pl.storage.files import ABANDONED_AFTER, create_new, output_folder, partial_name, write_json
from vita_audio_pl.storage.lease import is_lease
from vita_audio_pl.storage.places import Place, PlaceT, names_in, relative
from vita_audio_pl.storage.remote import RemotePath

MARK = ".vita_audio_pl.json"
FORMAT = 1
_LOCK = ".lock"  # which earlier versions left
_REMOVED = ".removed"  # in the partial names of folders that are being removed
_WEIGHTS, _UNNAMED = ".safetensors", re.compile(r"\.tmp\w{6}")  # what safetensors writes before it has its name
_PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<host>[^.]+)\.(?P<pid>\d+)\.partial")


@dataclass(frozen=True)
class Kind:
    """A sort of folder that is filled over time.

    Attributes:
        name: what the mark and messages call it.
        files: patterns of the files that are written there, relative to the folder: `*` stays within a name, `**` at the
            end stands for all below.
        sign: patterns of which versions without marks left a file there; such a folder is taken over.
    """

    name: str
    files: tuple[str, ...] = ()
    sign: tuple[str, ...] = ()


@dataclass(frozen=True)
class Owned:
    """A folder of ours; made by `claim`, or by `open` where it must be there already.

    Attributes:
        root: the folder.
        kind: what is written there.
        id: drawn when it was marked.
    """

    root: Place
    kind: Kind
    id: str

    @classmethod
    def claim(cls, root: Place, kind: Kind) -> "Owned":
        """Makes a folder ours that is not there, empty, ours already, or of an older version. Any number may call it.

        Raises:
            UserError: something else is there; nothing was touched.
        """
        if _read(root) is None:
            if isinstance(root, Path):
                output_folder(root, f"the {kind.name}")
            taken_over = any(any(root.glob(pattern)) for pattern in kind.sign)
            other = next(_strangers(root), None)
            if other and not taken_over and _read(root) is None:  # another process may have claimed it meanwhile
                raise UserError(
                    f"{root} is not a {kind.name} that this program made (it holds {other}), so nothing there is touched; "
                    "give an empty folder, or one that does not exist yet"
                )
            root.mkdir(parents=True, exist_ok=True)
            _mark(root, kind.name)
        return cls.open(root, kind)

    @classmethod
    def open(cls, root: Place, kind: Kind) -> "Owned":
        """The folder `root`, which must carry our mark.

        Raises:
            UserError: it does not, or is of another kind.
        """
        mark = _read(root)
        if mark is None:
            raise UserError(f"{root} does not carry this program's mark ({MARK}), so nothing there is removed")
        if mark["kind"] != kind.name:
            raise UserError(f"{root} is a {mark['kind']}, not a {kind.name}; give another folder")
        return cls(root, kind, mark["id"])

    def foreign(self, *names: str) -> list[PurePosixPath | Path]:
        """What lies in the folder, or under these names in it, and was not written by us; relative paths."""
        tops = [self.root / name for name in names or names_in(self.root)]
        return [path for top in tops if _is_there(top) for path in self._foreign(top)]

    def remove(self, *names: str) -> None:
        """Removes files and folders in it, all of them or none; each disappears at once. Missing ones are passed over.

        Raises:
            UserError: one of them holds what is not ours.
        """
        if names and (foreign := self.foreign(*names)):
            raise UserError(
                f"{self.root} holds {foreign[0]}, which this program did not write, so nothing there was removed; move it "
                "away and rerun the command"
            )
        for name in names:
            with suppress(FileNotFoundError):
                _remove(self.root / name)

    def clear(self, first: Iterable[str] = (), keep: Iterable[str] = ()) -> None:
        """Removes all that is in it but the mark and `keep`, beginning with `first`; all or nothing, as `remove`."""
        stays = {MARK, _LOCK, *keep}
        names = [
            name for name in dict.fromkeys([*first, *names_in(self.root)]) if name not in stays and not is_lease(name)
        ]
        self.remove(*names)

    def discard(self) -> None:
        """Removes the folder itself with all that is in it, or nothing.

        Raises:
            UserError: it holds what is not ours.
        """
        if foreign := self.foreign():
            raise UserError(f"{self.root} holds {foreign[0]}, which this program did not write, so it was not removed")
        _remove(self.root)

    def remove_abandoned(self) -> None:
        """Removes what killed writers left half-written: of dead processes here, or not touched for a week."""
        if isinstance(self.root, RemotePath):
            return  # in a store nothing is half-written
        for folder, _, _ in os.walk(self.root):
            for path in map(Path(folder).joinpath, names_in(Path(folder))):
                if _is_abandoned(path) and not any(self._foreign(path)):
                    _remove(path)

    def _foreign(self, path: Place) -> Iterator[PurePosixPath | Path]:
        way = relative(path, self.root)
        parts = [_name_when_whole(part) for part in way.parts]
        if path.is_dir() and not path.is_symlink():
            inside = _read(path)
            if inside is not None and isinstance(path, Path) and isinstance(self.root, Path):
                yield from _beside_inventory(path, inside, self.root)
            elif any(_matches(parts, pattern.split("/"), begins=True) for pattern in self.kind.files):
                for name in names_in(path):
                    yield from self._foreign(path / name)
            else:
                yield way
        elif (
            parts[-1] != _LOCK
            and not is_lease(parts[-1])
            and not parts[-1].startswith(MARK)
            and not any(_names_file(parts, pattern.split("/")) for pattern in self.kind.files)
        ):
            yield way


def begin_folder(target: Path, kind: str) -> Path:
    """A new folder beside `target`, to be filled and then renamed by `finish_folder`; what a killed one left is removed."""
    output_folder(target.parent, f"the {kind}")
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in target.parent.glob(f".{target.name}.*.partial"):
        if _is_abandoned(path) and _read(path) is not None:
            _remove(path)
    aside = partial_name(target)
    if _read(aside) is not None:
        _remove(aside)
    aside.mkdir()
    _mark(aside, kind)
    return aside


def finish_folder(aside: Path, target: Path, replace: bool = False, marked: bool = True) -> None:
    """Lists the files of `aside` in its mark and gives it its name.

    Args:
        replace: a folder of the same kind that is there, and holds no more than its mark lists, is replaced.
        marked: false for what leaves our hands: it keeps no mark, so no command will ever replace it.

    Raises:
        UserError: something else is there; `aside` is left as it is.
    """
    mark = _read(aside) or {}
    files = sorted(str(path.relative_to(aside)) for path in _files(aside))
    write_json(aside / MARK, mark | {"files": files})
    if os.path.lexists(target):
        there = _read(target)
        empty = target.is_dir() and not any(target.iterdir())
        ours = there is not None and there["kind"] == mark["kind"]
        if not empty and not (replace and ours and not any(_beside_inventory(target, there or {}, target))):
            raise UserError(
                f"{target} is in the way: this program did not write it; move it away, or give another name"
            )
        if not empty:
            _remove(target)
    if not marked:
        (aside / MARK).unlink()
    os.replace(aside, target)


@contextmanager
def work_folder(target: Path, kind: str) -> Iterator[Path]:
    """A new folder beside `target` to work in, which is removed when the block ends."""
    aside = begin_folder(target, kind)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def atomic_folder(target: Path, kind: str, replace: bool = False, marked: bool = True) -> Iterator[Path]:
    """A folder to fill, which gets the name `target` when the block ends well, and is removed otherwise.

    Raises:
        UserError: as `finish_folder`.
    """
    with work_folder(target, kind) as aside:
        yield aside
        finish_folder(aside, target, replace, marked)


def below(root: PlaceT, name: str, setting: str) -> PlaceT:
    """`root / name`, which names a place inside `root`.

    Raises:
        UserError: it is empty, absolute, or leads out of `root`.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise UserError(
            f"{setting} is '{name}': it names a folder inside {root}, so it cannot be empty, absolute or hold '..'"
        )
    return cast(PlaceT, root / name)


def _read(folder: Place) -> dict[str, Any] | None:
    """What a folder's mark says; None where it has none."""
    path = folder / MARK
    try:
        mark = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(mark["kind"], str) or not isinstance(mark["id"], str):
            raise ValueError("kind and id are texts")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"the mark {path} is damaged ({error}), so nothing in {folder} is touched; give another folder"
        ) from None
    if mark.get("format") != FORMAT:
        raise UserError(f"{path} has format {mark.get('format')}, this version knows {FORMAT}: update this program")
    return dict(mark)


def lists(folder: Path, name: str) -> bool:
    """Whether the mark of a folder that was written once says that it holds a file of this name."""
    return name in (_read(folder) or {}).get("files", ())


def refuse_inside(path: Path, setting: str) -> None:
    """Refuses a place for output in a folder that was written once, such as a model's.

    Raises:
        UserError: names the folder.
    """
    for folder in (path.absolute(), *path.absolute().parents):
        mark = _read(folder)
        if mark is not None and "files" in mark:
            raise UserError(f"{setting} is {path}, inside the {mark['kind']} {folder}: give a folder elsewhere")


def _mark(folder: Place, kind: str) -> None:
    """Writes a mark unless another process has just done so: the first one stays."""
    mark = {"kind": kind, "format": FORMAT, "id": uuid.uuid4().hex}
    create_new(folder / MARK, (json.dumps(mark) + "\n").encode())


def _is_there(path: Place) -> bool:
    return path.exists() if isinstance(path, RemotePath) else os.path.lexists(path)


def _strangers(folder: Place) -> Iterator[str]:
    """Names in a folder that has no mark, but for what processes leave that are claiming it just now."""
    for name in map(_name_when_whole, names_in(folder)):
        if name != _LOCK and not is_lease(name) and not name.startswith(MARK):
            yield name


def _files(folder: Path) -> Iterator[Path]:
    """All that is not a folder, the folder's own mark left out."""
    for at, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        yield from (path for path in map(Path(at).joinpath, [*names, *links]) if path != folder / MARK)


def _beside_inventory(folder: Path, mark: dict[str, Any], root: Path) -> Iterator[Path]:
    """Files and empty folders of a folder that was written once and that its mark does not list, relative to `root`.

    One that never got its name is wholly of the process that made it.
    """
    if "files" not in mark:
        if not _PARTIAL.fullmatch(folder.name):
            yield folder.relative_to(root)
        return
    listed = {*mark["files"], CHECKSUMS}  # which a command adds to the folders of older versions
    folders = {str(parent) for name in listed for parent in PurePosixPath(name).parents}
    yield from (path.relative_to(root) for path in _files(folder) if str(path.relative_to(folder)) not in listed)
    for at, names, _ in os.walk(folder):
        for path in map(Path(at).joinpath, names):
            if not path.is_symlink() and str(path.relative_to(folder)) not in folders:
                yield path.relative_to(root)


def _matches(parts: list[str], pattern: list[str], begins: bool = False) -> bool:
    """Whether a pattern names a path, or, with `begins`, may name paths below it."""
    if not parts:
        return begins or not pattern
    if not pattern:
        return False
    return pattern == ["**"] or (fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:], begins))


def _names_file(parts: list[str], pattern: list[str]) -> bool:
    """Whether a pattern names a file, or one of weights that was killed before it had its name."""
    if _UNNAMED.fullmatch(parts[-1]) and pattern[-1].endswith(_WEIGHTS):
        return _matches(parts[:-1], pattern[:-1])
    return _matches(parts, pattern)


def _name_when_whole(name: str) -> str:
    """The name that a partial file or folder is to get."""
    partial = _PARTIAL.fullmatch(name)
    return partial["name"].removesuffix(_REMOVED) if partial else name


def _is_abandoned(path: Path) -> bool:
    partial = _PARTIAL.fullmatch(path.name)
    if partial is None:
        return False
    dead = partial["host"] == socket.gethostname().split(".")[0] and not Path(f"/proc/{partial['pid']}").exists()
    with suppress(FileNotFoundError):  # its writer has just finished
        return dead or time.time() - path.lstat().st_mtime > ABANDONED_AFTER
    return False


def _remove(path: Place) -> None:
    """Removes a file, a link or a folder; a folder disappears at once, and a kill leaves a part of it under a partial name."""
    if isinstance(path, RemotePath) or path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    if not _PARTIAL.fullmatch(path.name):
        aside = partial_name(path.with_name(f"{path.name}{_REMOVED}"))
        os.replace(path, aside)
        path = aside
    shutil.rmtree(path)
