"""Shards on remote storage, copied to this node once: whoever comes first copies, the others wait and find the work done.

Every start compares the copy with the checksums at home, and copies again what is damaged.

All shards of a source are copied, since rows are put together from everywhere; text and codes of 200,000 hours are
about 28 GB. Where models take audio through an encoder, the kept audio, many times larger, is copied as well if it fits.
"""

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from vita_audio_pl.data.clips import AUDIO_INDEX
from vita_audio_pl.data.options import DataOptions
from vita_audio_pl.data.prepared import INDEX, MANIFEST, Manifest, NotPrepared, no_checksums
from vita_audio_pl.data.quarantine import QUARANTINE
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import CHECKSUMS, FileSum, find_damage, parse_checksums, refuse
from vita_audio_pl.storage.copies import SourceNotFound, copy_files, local_copy, reaching
from vita_audio_pl.storage.files import atomic_write, explain_full_disk
from vita_audio_pl.storage.lease import hold
from vita_audio_pl.storage.node import once_a_node
from vita_audio_pl.storage.owned import Kind, Owned
from vita_audio_pl.storage.places import Place, place
from vita_audio_pl.storage.remote import RemotePath

log = logging.getLogger(__name__)

COPY = Kind("copy of a prepared source", (MANIFEST, CHECKSUMS, QUARANTINE), sign=(MANIFEST,))


def shards_place(options: DataOptions) -> Place:
    """Where the shards of a run lie.

    Raises:
        UserError: the setting is a command (`pipe:`), or a URL that cannot be used here.
    """
    return place(options.folder, "data.shards")


def beside(options: DataOptions, name: str) -> Path:
    """What lies beside the shards (`tokenizer`, `codec`, `speech_input`, `grammar.jsgf`), on this machine; it may be missing.

    Raises:
        UserError: it is remote, and cannot be read or is damaged.
    """
    try:
        return local_copy(shards_place(options).parent / name, options.cache)
    except SourceNotFound:
        return Path(options.cache).expanduser() / "missing" / name


def tokenizer_folder(options: DataOptions) -> Path:
    """The text tokenizer whose ids the shards hold, on this machine.

    Raises:
        UserError: it is remote, and cannot be read or is damaged.
    """
    if options.tokenizer_folder is None:
        return beside(options, "tokenizer")
    return local_copy(place(options.tokenizer_folder, "data.tokenizer_folder"), options.cache)


def tokenizer_there(options: DataOptions) -> Path:
    """`tokenizer_folder`, which must be there.

    Raises:
        UserError: also where none lies beside the shards and none is given.
    """
    folder = tokenizer_folder(options)
    if options.tokenizer_folder is None and not folder.exists():
        raise UserError(
            f"there is no tokenizer beside {options.shards}: put the one that they were prepared with there, or give "
            "data.tokenizer_folder=DIR"
        )
    return folder


def is_prepared(shards: Place, source: str) -> bool:
    """Whether a source is there to be read."""
    with reaching(shards):
        return (shards / source / MANIFEST).is_file()


def local_folder(shards: Place, source: str, cache: str, with_audio: bool = False) -> Path:
    """The folder of a source on this node, copied from its URL if it has one; `with_audio`, the audio that was kept, too.

    Raises:
        UserError: it cannot be reached, is not whole there, or does not fit on the disk.
    """
    if not isinstance(shards, RemotePath):
        return shards / source
    named = str(shards)  # without credentials: a URL that is signed again names the same data
    folder = Path(cache).expanduser() / hashlib.sha256(named.encode()).hexdigest()[:16] / source
    once_a_node(
        f"{folder.parent.name}{hashlib.sha256(source.encode()).hexdigest()[:16]}{'-audio' if with_audio else ''}",
        partial(_stage, shards, source, folder, with_audio),
    )
    return folder


def source_folders(options: DataOptions, names: Sequence[str], with_audio: bool = False) -> list[Path]:
    """Folders of sources on this node, as `local_folder`."""
    return [local_folder(shards_place(options), name, options.cache, with_audio) for name in names]


def send_quarantine(options: DataOptions, folder: Path) -> None:
    """Puts what was quarantined in a local copy of a source where its shards are, so that all runs leave it out."""
    home = shards_place(options) / folder.name
    if isinstance(home, RemotePath) and (folder / QUARANTINE).is_file():
        atomic_write(home / QUARANTINE, (folder / QUARANTINE).read_bytes())


def _stage(shards: RemotePath, source: str, folder: Path, with_audio: bool) -> None:
    """Makes `folder` what the source is at home: whatever is missing or damaged is copied."""
    home = shards / source
    work = f"the copy of '{source}'"
    mine = Owned.claim(folder, COPY)
    with hold(folder, "copy", work, wait=True), reaching(home), explain_full_disk(folder, work):
        described, summed = (_contents(home / name) for name in (MANIFEST, CHECKSUMS))
        if described is None:
            raise NotPrepared(f"the source '{source}' is not prepared at {shards}: it has no {MANIFEST} there")
        same = (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() == described
        if not same:
            mine.remove(MANIFEST)  # what is there is of other shards until the copy is whole
        atomic_write(folder / f"{MANIFEST}.new", described)
        manifest = Manifest.load(folder, f"{MANIFEST}.new")
        expected = _expected(home / CHECKSUMS, summed, manifest, with_audio)
        if summed is None:
            mine.remove(CHECKSUMS)
            if not same:
                _copy(home, folder, [INDEX])
        else:
            atomic_write(folder / CHECKSUMS, summed)
        _repair(home, folder, expected, told=same)
        (folder / f"{MANIFEST}.new").rename(folder / MANIFEST)
        left_out = _contents(home / QUARANTINE)
        if left_out is None:
            mine.remove(QUARANTINE)
        else:
            atomic_write(folder / QUARANTINE, left_out)


def _expected(where: RemotePath, summed: bytes | None, manifest: Manifest, with_audio: bool) -> dict[str, FileSum]:
    """What the files of a copy must be, by name; older versions have left the sizes of the shards alone."""
    audio = manifest.audio_shards if with_audio else ()
    if summed is None:
        if audio:
            raise UserError(f"{no_checksums(where.parent)}, so the audio that was kept there is not copied")
        return {shard.name: FileSum(shard.bytes, ()) for shard in manifest.shards}
    names = [INDEX, *([AUDIO_INDEX] if audio else []), *(shard.name for shard in (*manifest.shards, *audio))]
    sums = parse_checksums(where, summed)
    unlisted = [name for name in names if name not in sums]
    if unlisted:
        raise UserError(f"{where} does not list {unlisted[0]}: it is of other shards; prepare the source again")
    return {name: sums[name] for name in names}


def _repair(home: RemotePath, folder: Path, expected: Mapping[str, FileSum], told: bool) -> None:
    """Copies the files that are not as they are expected to be; `told` says which were there and are damaged.

    Raises:
        UserError: a file is damaged after it was copied, too.
    """
    damaged = list(find_damage(folder, expected))
    for damage in (one for one in damaged if told and one.path.exists()):  # audio comes when it is first wanted
        log.warning("%s; copying it again", damage)
    names = sorted({damage.path.name for damage in damaged})
    needed, free = sum(expected[name].bytes for name in names), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"'{folder.name}' has {needed / 1e9:.1f} GB to be copied from {home}, and {free / 1e9:.1f} GB are free for {folder}: "
            "name a folder on a larger disk (data.cache=DIR), or mount the storage and give its folder"
        )
    _copy(home, folder, names)
    refuse(
        find_damage(folder, {name: expected[name] for name in names}),
        f"it was copied from {home} just now, so it is damaged there or was on the way: check it there with "
        "python -m vita_audio_pl.data lint",
    )


def _copy(home: RemotePath, folder: Path, names: list[str]) -> None:
    try:
        copy_files(home, folder, names)
    except FileNotFoundError as error:
        raise UserError(
            f"{home}: a file that the manifest names is missing ({error.filename}); prepare the source again"
        ) from error


def _contents(path: RemotePath) -> bytes | None:
    """A small file; None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
