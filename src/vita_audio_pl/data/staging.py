"""Shards on remote storage, copied to this node once: whoever comes first copies, the others wait and find the work done.

All shards of a source are copied, since rows are put together from everywhere; text and codes of 200,000 hours are
about 28 GB.
"""

import hashlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from vita_audio_pl.data.prepared import INDEX, MANIFEST, QUARANTINE, Manifest
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.files import full_disk_is_told, partial_name, sole_user, write_whole

_COPIES_AT_A_TIME = 8
_CHUNK = 1 << 20


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
    folder = Path(cache).expanduser() / hashlib.sha256(shards.encode()).hexdigest()[:16] / source
    files, base = fsspec.core.url_to_fs(shards)
    home = f"{base.rstrip('/')}/{source}"
    with sole_user(folder), _said(f"{shards}/{source}"), full_disk_is_told(folder, f"the copy of '{source}'"):
        described = _contents(files, f"{home}/{MANIFEST}")
        if described is None:
            raise UserError(f"the source '{source}' is not prepared at {shards}: it has no {MANIFEST} there")
        if not (folder / MANIFEST).is_file() or (folder / MANIFEST).read_bytes() != described:
            (folder / MANIFEST).unlink(missing_ok=True)  # what is there is of other shards until the copy is whole
            write_whole(folder / f"{MANIFEST}.new", described)
            manifest = Manifest.load(folder, f"{MANIFEST}.new")
            _copy(files, f"{home}/{INDEX}", folder / INDEX)
            with ThreadPoolExecutor(_COPIES_AT_A_TIME) as pool:
                wanted = [shard for shard in manifest.shards if not _is_there(folder / shard.name, shard.bytes)]
                list(pool.map(lambda shard: _copy(files, f"{home}/{shard.name}", folder / shard.name), wanted))
            (folder / f"{MANIFEST}.new").rename(folder / MANIFEST)
        left_out = _contents(files, f"{home}/{QUARANTINE}")
        if left_out is not None:
            write_whole(folder / QUARANTINE, left_out)
    return folder


def _contents(files: Any, path: str) -> bytes | None:
    """A small file; None where there is none. `exists` would say the same of a server that does not answer."""
    try:
        return bytes(files.cat_file(path))
    except FileNotFoundError:
        return None


def _local(shards: str) -> Path:
    return Path(shards.split("://", 1)[1] if "://" in shards else shards)


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _copy(files: Any, origin: str, target: Path) -> None:
    partial = partial_name(target)
    try:
        with files.open(origin, "rb") as source, open(partial, "wb") as copy:
            shutil.copyfileobj(source, copy, _CHUNK)
        partial.rename(target)
    except BaseException:
        partial.unlink(missing_ok=True)
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
