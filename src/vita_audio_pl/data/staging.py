"""Shards on remote storage, copied to this node once: whoever comes first copies, the others wait and find the work done.

Every start compares the copy with the checksums at home, and copies anew what is damaged.

All shards of a source are copied, since rows are put together from everywhere; text and codes of 200,000 hours are
about 28 GB.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import fsspec

from vita_audio_pl.data.prepared import INDEX, MANIFEST, QUARANTINE, Manifest, NotPrepared
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import CHECKSUMS, FileSum, find_damage, parse_checksums, refuse
from vita_audio_pl.storage.files import full_disk_is_told, partial_name, write_whole
from vita_audio_pl.storage.lease import hold
from vita_audio_pl.storage.node import once_a_node
from vita_audio_pl.storage.owned import Kind, Owned
from vita_audio_pl.storage.secrets import without_credentials

log = logging.getLogger(__name__)

_COPIES_AT_A_TIME = 8
_CHUNK = 1 << 20
COPY = Kind("copy of a prepared source", (MANIFEST, CHECKSUMS, QUARANTINE), sign=(MANIFEST,))


def is_remote(shards: str) -> bool:
    """Whether `shards` is a URL.

    Raises:
        UserError: it is a command (`pipe:`) or of a protocol that fsspec does not know.
    """
    scheme = shards.split(":", 1)[0].lower() if ":" in shards else ""
    if scheme == "pipe" or shards.strip().startswith("|"):
        raise UserError(f"data.shards is '{shards}': commands are not run; give a folder or a URL")
    if "://" not in shards:
        return False
    if scheme not in fsspec.available_protocols():
        raise UserError(f"data.shards is '{shards}': fsspec knows no protocol '{scheme}'")
    return scheme not in ("file", "local")


def is_prepared(shards: str, source: str) -> bool:
    """Whether a source is there to be read."""
    if not is_remote(shards):
        return (_local(shards) / source / MANIFEST).is_file()
    files, base = fsspec.core.url_to_fs(shards)
    with _said(shards):
        return _contents(files, f"{base.rstrip('/')}/{source}/{MANIFEST}") is not None


def local_folder(shards: str, source: str, cache: str) -> Path:
    """The folder of a source on this node, copied from its URL if it has one.

    Raises:
        UserError: it cannot be reached, is not whole there, or the disk is full.
    """
    if not is_remote(shards):
        return _local(shards) / source
    named = without_credentials(shards)  # a URL that is signed anew names the same data
    folder = Path(cache).expanduser() / hashlib.sha256(named.encode()).hexdigest()[:16] / source
    once_a_node(
        folder.parent.name + hashlib.sha256(source.encode()).hexdigest()[:16], partial(_stage, shards, source, folder)
    )
    return folder


def _stage(shards: str, source: str, folder: Path) -> None:
    """Makes `folder` what the source is at home: whatever is missing or damaged is copied."""
    files, base = fsspec.core.url_to_fs(shards)
    home = f"{base.rstrip('/')}/{source}"
    work = f"the copy of '{source}'"
    mine = Owned.claim(folder, COPY)
    with hold(folder, "copy", work, wait=True), _said(f"{shards}/{source}"), full_disk_is_told(folder, work):
        described, summed = (_contents(files, f"{home}/{name}") for name in (MANIFEST, CHECKSUMS))
        if described is None:
            raise NotPrepared(f"the source '{source}' is not prepared at {shards}: it has no {MANIFEST} there")
        same = (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() == described
        if not same:
            mine.remove(MANIFEST)  # what is there is of other shards until the copy is whole
        write_whole(folder / f"{MANIFEST}.new", described)
        manifest = Manifest.load(folder, f"{MANIFEST}.new")
        expected = _expected(f"{home}/{CHECKSUMS}", summed, manifest)
        if summed is None:
            mine.remove(CHECKSUMS)
            if not same:
                _copy(files, f"{home}/{INDEX}", folder / INDEX)
        else:
            write_whole(folder / CHECKSUMS, summed)
        _repair(files, home, folder, expected, told=same)
        (folder / f"{MANIFEST}.new").rename(folder / MANIFEST)
        left_out = _contents(files, f"{home}/{QUARANTINE}")
        if left_out is None:
            mine.remove(QUARANTINE)
        else:
            write_whole(folder / QUARANTINE, left_out)


def _expected(where: str, summed: bytes | None, manifest: Manifest) -> dict[str, FileSum]:
    """What the files of a copy must be, by name; older versions have left the sizes of the shards alone."""
    if summed is None:
        return {shard.name: FileSum(shard.bytes, ()) for shard in manifest.shards}
    sums, names = parse_checksums(Path(where), summed), [INDEX, *(shard.name for shard in manifest.shards)]
    unlisted = [name for name in names if name not in sums]
    if unlisted:
        raise UserError(f"{where} does not list {unlisted[0]}: it is of other shards; prepare the source again")
    return {name: sums[name] for name in names}


def _repair(files: Any, home: str, folder: Path, expected: Mapping[str, FileSum], told: bool) -> None:
    """Copies the files that are not as they are expected to be; `told` says which were there and are damaged.

    Raises:
        UserError: a file is damaged after it was copied, too.
    """
    damaged = list(find_damage(folder, expected))
    for damage in damaged if told else ():
        log.warning("%s; it is copied again", damage)
    names = sorted({damage.path.name for damage in damaged})
    with ThreadPoolExecutor(_COPIES_AT_A_TIME) as pool:
        list(pool.map(lambda name: _copy(files, f"{home}/{name}", folder / name), names))
    refuse(
        find_damage(folder, {name: expected[name] for name in names}),
        f"it was copied from {home} just now, so it is damaged there or was on the way: check it there with "
        "python -m vita_audio_pl.data lint",
    )


def _contents(files: Any, path: str) -> bytes | None:
    """A small file; None where there is none. `exists` would say the same of a server that does not answer."""
    try:
        return bytes(files.cat_file(path))
    except FileNotFoundError:
        return None


def _local(shards: str) -> Path:
    return Path(shards.split("://", 1)[1] if "://" in shards else shards)


def _copy(files: Any, origin: str, target: Path) -> None:
    aside = partial_name(target)
    try:
        with files.open(origin, "rb") as source, open(aside, "wb") as copy:
            shutil.copyfileobj(source, copy, _CHUNK)
        aside.rename(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def _said(where: str) -> Iterator[None]:
    """Turns what goes wrong on the way into a sentence; a full disk is told by others."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(
            f"{where}: a file that the manifest names is not there ({error}); prepare the source again"
        ) from error
    except Exception as error:  # every storage has errors of its own
        raise UserError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
