"""Checking every byte of a prepared source: index, archives, checksums, contents."""

import logging
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from vita_audio_pl.data.clips import AUDIO_INDEX, EXTENSION, clips_intact
from vita_audio_pl.data.index import OFFSET_UNIT, Index
from vita_audio_pl.data.prepared import (
    INDEX,
    MANIFEST,
    Manifest,
    PreparedSource,
    check_index,
    no_checksums,
)
from vita_audio_pl.data.quarantine import read_quarantine
from vita_audio_pl.data.samples import checksum, unpack_sample
from vita_audio_pl.data.shards import iterate_shard
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import Damage, find_damage, read_checksums
from vita_audio_pl.text import AudioCodes

log = logging.getLogger(__name__)


@dataclass
class Findings:
    """What is wrong with a source.

    Attributes:
        source: its name.
        samples: samples checked.
        problems: of files: each a sentence that names the file.
        broken: sample number -> what is wrong with it.
        kinds: how often each kind of trouble was found.
    """

    source: str
    samples: int = 0
    problems: list[str] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        return not self.problems and not self.broken

    def file(self, kind: str, sentence: str) -> None:
        self.kinds[kind] += 1
        self.problems.append(sentence)

    def sample(self, number: int, kind: str, sentence: str) -> None:
        if number not in self.broken:
            self.kinds[kind] += 1
            self.broken[number] = sentence


def lint_source(folder: Path) -> Findings:
    """Reads a source from end to end and names everything that is not as it was written.

    Raises:
        UserError: there is no manifest or no index to check against.
    """
    found, manifest = Findings(folder.name), Manifest.load(folder)
    damaged = _changed_bytes(folder, manifest, found)
    index = Index(folder / INDEX)
    if not index.intact() and not found.kinds["damaged index"]:
        found.file("damaged index", f"{index.path}: its checksum does not match its contents")
    for kind, check in (
        ("stale index", partial(check_index, folder, manifest, index)),
        ("damaged quarantine", partial(read_quarantine, folder, len(index))),
    ):
        try:
            check()
        except UserError as error:
            found.file(kind, str(error))
    shard_of = np.asarray(index["shard"])
    for number, shard in enumerate(manifest.shards):
        mine = np.flatnonzero(shard_of == number)
        path = folder / shard.name
        if not path.is_file():
            found.file("missing shard", f"{path} is missing, with {len(mine)} samples")
            for sample in mine.tolist():
                found.sample(sample, "in a missing shard", f"its shard {path} is missing")
            continue
        if path.stat().st_size != shard.bytes:
            found.file("wrong size", f"{path} has {path.stat().st_size} bytes, written were {shard.bytes}")
        with _at_least(damaged.get(shard.name), found):
            _lint_shard(path, index, manifest, mine, found)
    for number, shard in enumerate(manifest.audio_shards):
        with _at_least(damaged.get(shard.name), found):
            _lint_audio(folder / shard.name, np.flatnonzero(shard_of == number).tolist(), found)
    found.samples = len(index)
    return found


def _changed_bytes(folder: Path, manifest: Manifest, found: Findings) -> dict[str, Damage]:
    """Compares all files with `checksums.json`; returns the shards that have changed, whose samples will tell."""
    shards = {shard.name for shard in (*manifest.shards, *manifest.audio_shards)}
    sums = read_checksums(folder)
    if sums is None:
        log.warning("%s", no_checksums(folder))
        return {}
    kinds = {MANIFEST: "damaged manifest", INDEX: "damaged index", AUDIO_INDEX: "damaged index of audio"}
    there = {name: wanted for name, wanted in sums.items() if name in shards or name in kinds}
    changed: dict[str, Damage] = {}
    for damage in find_damage(folder, there):
        if damage.path.name in shards:
            changed[damage.path.name] = damage
        else:
            found.file(kinds[damage.path.name], str(damage))
    return changed


@contextmanager
def _at_least(damage: Damage | None, found: Findings) -> Iterator[None]:
    """Reports a shard's damage where what is done inside finds nothing wrong with the samples."""
    told = len(found.problems) + len(found.broken)
    yield
    if damage is not None and len(found.problems) + len(found.broken) == told:
        found.file("changed shard", f"{damage}, but all of its samples are")


def _lint_shard(path: Path, index: Index, manifest: Manifest, mine: np.ndarray, found: Findings) -> None:
    expected = dict(zip((index["offset"][mine].astype(np.int64) * OFFSET_UNIT).tolist(), mine.tolist(), strict=True))
    missing = dict(expected)
    try:
        for offset, data in iterate_shard(path):
            number = missing.pop(offset, None)
            if number is None:
                found.file("unknown sample", f"{path}: the sample at byte {offset} is not in the index")
            elif checksum(data) != int(index["crc"][number]):
                found.sample(number, "wrong checksum", f"{path}, byte {offset}: its checksum does not agree")
            else:
                _lint_sample(path, number, data, manifest, found)
    except (tarfile.TarError, ValueError, OSError) as error:
        found.file("damaged shard", f"{path} cannot be read to its end: {error}")
        _lint_by_index(path, index, missing, manifest, found)
        return
    for offset, number in missing.items():
        found.sample(number, "not in its shard", f"{path} has no sample at byte {offset}")


def _lint_audio(path: Path, mine: list[int], found: Findings) -> None:
    """Checks the audio of a shard's samples, which lies in their order."""
    checked = 0
    try:
        for (_, data), number in zip(iterate_shard(path, EXTENSION), mine, strict=True):
            checked += 1
            if not clips_intact(data):
                found.sample(number, "wrong checksum of audio", f"{path}: the audio of sample {number} has changed")
    except (tarfile.TarError, ValueError, OSError) as error:
        found.file("damaged audio shard", f"{path} cannot be read to its end: {error}")
        for number in mine[checked:]:
            found.sample(number, "in a damaged audio shard", f"{path}: the audio of sample {number} is lost")


def _lint_by_index(path: Path, index: Index, rest: dict[int, int], manifest: Manifest, found: Findings) -> None:
    """Checks what the archive's own structure does not lead to any more, one sample after another."""
    data = path.read_bytes()
    for offset, number in rest.items():
        size = int.from_bytes(data[offset : offset + 4], "little")
        packed = data[offset : offset + size]
        if len(packed) < 4 or checksum(packed) != int(index["crc"][number]):
            found.sample(
                number, "in a damaged shard", f"{path}, byte {offset}: lost with the shard's end or overwritten"
            )
        else:
            _lint_sample(path, number, packed, manifest, found)


def _lint_sample(path: Path, number: int, data: bytes, manifest: Manifest, found: Findings) -> None:
    try:
        sample = unpack_sample(data)
    except ValueError as error:
        found.sample(number, "not a sample", f"{path}: {error}")
        return
    codebook = int(manifest.codec.get("codebook_size", 0))
    for turn in sample.turns:
        for segment in turn.segments:
            if isinstance(segment, AudioCodes) and segment.codes.size and int(segment.codes.max()) >= codebook:
                sentence = f"{path}: {sample.id} has the code {segment.codes.max()} of a codebook of {codebook}"
                found.sample(number, "code outside the codebook", sentence)


def quarantine(folder: Path, findings: Findings) -> None:
    """Writes the broken samples down so that they are never planned.

    Raises:
        UserError: a file is damaged, too, so that the source has to be prepared again.
    """
    blocking = [
        kind
        for kind in ("damaged manifest", "damaged index", "stale index", "missing shard", "wrong size")
        if findings.kinds[kind]
    ]
    if blocking:
        raise UserError(
            f"'{findings.source}' cannot be used by leaving samples out ({', '.join(blocking)}): delete the "
            "files that are named above and prepare it again: only their parts are made again"
        )
    if findings.broken:
        PreparedSource(folder).quarantine(findings.broken)
