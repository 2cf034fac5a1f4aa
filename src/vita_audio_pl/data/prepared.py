"""A prepared source on disk: its manifest, its index and its shards, checked against one another and read at random.

`<shards>/<source>/` holds `manifest.json`, `index.bin`, the shards (`*.tar`), `checksums.json` of all these and, if
samples were found broken later, `quarantine.json`. Manifest and index are verified when a source is opened, a sample's
bytes when they are read.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vita_audio_pl.data.clips import AUDIO_INDEX, PLACES, unpack_clips
from vita_audio_pl.data.index import COLUMNS, OFFSET_UNIT, Index
from vita_audio_pl.data.quarantine import QUARANTINE, read_quarantine, write_quarantine
from vita_audio_pl.data.readers.jsonl import PREFERENCE
from vita_audio_pl.data.samples import TokenizedSample, checksum, sample_size, unpack_sample
from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.storage.checksums import (
    CHECKSUMS,
    FileSum,
    read_checksums,
    size_damage,
    sum_of_bytes,
    sum_of_files,
    verify,
    write_checksums,
)
from vita_audio_pl.storage.files import atomic_write, json_bytes
from vita_audio_pl.storage.open_files import open_files, read_whole
from vita_audio_pl.storage.owned import Kind
from vita_audio_pl.storage.places import Place

log = logging.getLogger(__name__)

FORMAT = 1
_FIRST_BYTES = 4096  # of a sample, read at once: few are longer
MANIFEST, INDEX, SKIPPED = "manifest.json", "index.bin", "skipped.jsonl"
_HASH = "[0-9a-f]" * 20
CARDS = ("card.md", "card.json")
JUDGED = "judged.json"
"""A judge's results for synthesised speech."""
PART_FILES = tuple(f"{_HASH}.{kind}" for kind in ("tar", "index", "done.json", "audio.tar", "audio.npy"))
"""What a part leaves, named by a hash of its content and of how it was tokenised, and a shard of several parts (`merge.py`)."""
SOURCE = Kind(
    "prepared source",
    (
        *(MANIFEST, INDEX, QUARANTINE, SKIPPED, AUDIO_INDEX, CHECKSUMS, *CARDS, JUDGED, *PART_FILES),
        *(".parts.json", ".job-*.json", f".failed-{_HASH}.json"),
    ),
    sign=("*.done.json",),
)


class BrokenSample(Exception):
    """A sample that cannot be read; the message says where and why."""


class NotPrepared(UserError):
    """The source is not prepared yet; `data.skip_missing` continues without it."""


@dataclass(frozen=True)
class ShardFile:
    """One shard of a source: file name, size, number of samples."""

    name: str
    bytes: int
    samples: int


@dataclass(frozen=True)
class Manifest:
    """Description of a prepared source.

    Attributes:
        source, task: name and task of the source.
        tokenizer: fingerprint of the text tokenizer.
        codec: name, fingerprint, codes_per_second and codebook_size of the codec.
        samples, seconds, text_tokens, codes: totals; seconds of audio.
        shards: in the order of the index's shard numbers.
        index_crc: checksum of the index that belongs to these shards.
        audio_shards: shards of the prompt audio, if it was kept for continuous encoders.
        report: counts of skipped, cut or broken samples, by reason.
    """

    source: str
    task: str
    tokenizer: str
    codec: dict[str, Any]
    samples: int
    seconds: float
    text_tokens: int
    codes: int
    shards: tuple[ShardFile, ...]
    index_crc: int
    audio_shards: tuple[ShardFile, ...] = ()
    report: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Place, shard_sums: Mapping[str, FileSum]) -> None:
        """Write `checksums.json`, then `manifest.json`, the last file of a source to be written.

        Args:
            shard_sums: checksums of all shards, by name.
        """
        data = json_bytes({"format": FORMAT, **asdict(self)})
        beside = sum_of_files([folder / INDEX, *([folder / AUDIO_INDEX] if self.audio_shards else [])])
        sums = {**{path.name: found for path, found in beside.items()}, **shard_sums, MANIFEST: sum_of_bytes(data)}
        write_checksums(folder, sums)
        atomic_write(folder / MANIFEST, data)

    @classmethod
    def load(cls, folder: Place, name: str = MANIFEST) -> "Manifest":
        """Read `manifest.json`.

        Raises:
            UserError: the source is not prepared, or its manifest is damaged, of another format, or names files
                outside.
        """
        path = folder / name
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values.pop("format")
            if version != FORMAT:
                raise UserError(f"{path} has format {version}, this version reads {FORMAT}; prepare the source again")
            shards = tuple(ShardFile(**shard) for shard in values.pop("shards"))
            audio = tuple(ShardFile(**shard) for shard in values.pop("audio_shards", ()))
            for shard in (*shards, *audio):
                if Path(shard.name).name != shard.name:
                    raise UserError(f"{path} names the shard {shard.name!r}, which is no plain file name")
            return cls(**values, shards=shards, audio_shards=audio)
        except FileNotFoundError:
            raise NotPrepared(
                f"the source '{folder.name}' is not prepared: {path} is missing; {_way_out(folder)}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if is_machine_fault(error):
                raise
            raise UserError(f"{path} is damaged ({error}); prepare the source again") from error


def _way_out(folder: Place) -> str:
    """What to do about a source that is not prepared: to prepare it, or to train on those that are."""
    shards = folder.parent
    manifests = sorted(shards.glob(f"*/{MANIFEST}")) if isinstance(shards, Path) else []
    there = [path.parent.name for path in manifests if not path.parent.name.endswith(".dev")]
    prepare = f"run python -m vita_audio_pl.prepare source={folder.name}"
    if not there:
        return prepare
    mixture = shards.parent / "mixture.yaml"
    named = mixture if mixture.is_file() else "FILE.yaml"
    return f"{prepare}, or give stage.mixture={named} for what is in {shards} ({', '.join(there[:5])}{', ...' if there[5:] else ''})"


def no_checksums(folder: Place) -> str:
    """Message about a source that an older version has prepared."""
    return (
        f"'{folder.name}' was prepared by an older version, without checksums: check it with python -m vita_audio_pl.data "
        f"lint source={folder.name}, then add them with python -m vita_audio_pl.checksums folder={folder} write=true"
    )


def verify_source(folder: Place, manifest: Manifest, with_audio: bool = False) -> None:
    """Check manifest, index and audio offsets against their checksums; reports when an older version wrote none.

    Raises:
        UserError: a checksum does not match.
    """
    remedy = f"copy the source '{folder.name}' again, or give the command that prepared it again: shards that are whole are kept"
    sums = read_checksums(folder)
    if sums is None:
        log.warning("%s", no_checksums(folder))
        if not Index(folder / INDEX).intact():
            raise UserError(f"{folder / INDEX} is damaged: its contents do not agree with its checksum; {remedy}")
        return
    read = [MANIFEST, INDEX, *([AUDIO_INDEX] if with_audio and manifest.audio_shards else [])]
    verify(folder, {name: sums[name] for name in read if name in sums}, remedy)
    unlisted = [name for name in (*read, *(shard.name for shard in manifest.shards)) if name not in sums]
    if unlisted:
        raise UserError(f"{folder / CHECKSUMS} does not list {unlisted[0]}: it is of other shards; {remedy}")


def check_index(folder: Path, manifest: Manifest, index: Index) -> None:
    """Refuse an index that does not match the manifest's shards and their numbers of samples.

    Raises:
        UserError: the first mismatch.
    """
    again = f"run python -m vita_audio_pl.data lint source={folder.name}, then prepare the source again"
    if index.crc != manifest.index_crc or len(index) != manifest.samples:
        raise UserError(f"{folder / INDEX} does not belong to the shards beside it: {again}")
    names = {shard.name for shard in manifest.shards}
    ends = np.searchsorted(index["shard"], np.arange(len(manifest.shards), dtype=COLUMNS["shard"]), "right")
    expected = np.cumsum([shard.samples for shard in manifest.shards], dtype=np.int64)
    if ends.tolist() != expected.tolist() or len(index) != expected[-1:].sum() or len(names) != len(manifest.shards):
        raise UserError(
            f"{folder / MANIFEST} names {len(names)} shards with {expected[-1:].sum()} samples, but {INDEX} has {len(index)} "
            f"samples that lie otherwise: {again}"
        )
    if manifest.audio_shards and len(manifest.audio_shards) != len(manifest.shards):
        raise UserError(
            f"{folder / MANIFEST} names {len(manifest.audio_shards)} shards of audio for {len(manifest.shards)} of codes: {again}"
        )


class PreparedSource:
    """Random access to the samples of a prepared source. Cheap to send to worker processes: files are opened there.

    Args:
        folder: the source's folder.
        with_audio: prompt audio is needed, too.

    Attributes:
        quarantined: broken samples, and why.

    Raises:
        UserError: not prepared, damaged, a shard missing or of another size, an index of other shards, or
            prompt audio was not kept.
    """

    def __init__(self, folder: Path, with_audio: bool = False):
        self.folder = folder
        self.manifest = Manifest.load(folder)
        open_files.forget(folder)
        verify_source(folder, self.manifest, with_audio)
        self.index = Index(folder / INDEX)
        check_index(folder, self.manifest, self.index)
        for shard in (*self.manifest.shards, *(self.manifest.audio_shards if with_audio else ())):
            damage = size_damage(folder / shard.name, shard.bytes)
            if damage is not None:
                raise UserError(
                    f"the shard {damage}: copy it again, or run python -m vita_audio_pl.data lint source={folder.name} and "
                    "prepare the source again"
                )
        if with_audio and not self.manifest.audio_shards and self.index["prompt_codes"].any():
            raise UserError(
                f"'{folder.name}' was prepared without the audio that continuous input hears; prepare it with "
                "keep_audio=true"
            )
        self.quarantined = read_quarantine(folder, len(self.index))

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def holds_pairs(self) -> bool:
        """Whether each sample is a prompt with a chosen and with a rejected answer: two conversations, one after the other."""
        return self.manifest.task == PREFERENCE

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest, "quarantined": self.quarantined}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.manifest, self.quarantined = state["folder"], state["manifest"], state["quarantined"]
        self.index = Index(self.folder / INDEX)

    def quarantine(self, broken: dict[int, str]) -> None:
        """Add samples to `quarantine.json`; they are never planned again."""
        self.quarantined = self.quarantined | broken
        write_quarantine(self.folder, self.quarantined)

    def read(self, number: int) -> TokenizedSample:
        """One sample, checked against its checksum.

        Raises:
            BrokenSample: the checksum does not match.
            UserError: the index was truncated since it was opened.
        """
        shard = self.manifest.shards[self.index.value("shard", number)]
        try:
            start = self.index.value("offset", number) * OFFSET_UNIT
            first = self._bytes(shard, start, min(_FIRST_BYTES, shard.bytes - start))
            size = sample_size(first)
            packed = first[:size] if size <= len(first) else self._bytes(shard, start, size)
            if checksum(packed) != self.index.value("crc", number):
                raise ValueError("its checksum does not agree")
            return unpack_sample(packed)
        except (OSError, ValueError) as error:
            if is_machine_fault(error):
                raise
            raise self._broken(number, shard, error) from error

    def read_clips(self, number: int) -> list[np.ndarray]:
        """The prompt audio of a sample, `(samples,) float32` at 16 kHz each.

        Raises:
            BrokenSample: the checksum does not match.
            UserError: the index, or that of the audio, was cut since it was opened.
        """
        shard = self.manifest.audio_shards[self.index.value("shard", number)]
        try:
            offset, size = self._clip_place(number)
            return unpack_clips(self._bytes(shard, offset * OFFSET_UNIT, size))
        except (OSError, ValueError, RuntimeError) as error:
            if is_machine_fault(error):
                raise
            raise self._broken(number, shard, error) from error

    def _bytes(self, shard: ShardFile, start: int, size: int) -> bytes:
        """Exactly `size` bytes of a shard; a size read from damaged bytes never allocates memory."""
        if start + size > shard.bytes:
            raise ValueError(f"it would end at byte {start + size} of {shard.bytes}")
        data = open_files.read(f"{self.folder}/{shard.name}", start, size)
        if len(data) < size:
            raise ValueError(f"the file ends at byte {start + len(data)}, written were {shard.bytes}")
        return data

    def _broken(self, number: int, shard: ShardFile, error: Exception) -> BrokenSample:
        return BrokenSample(f"sample {number} of '{self.name}' in {self.folder / shard.name}: {error}")

    def _clip_place(self, number: int) -> tuple[int, int]:
        """Offset of a sample's clips in their shard, in units of four bytes, and their size in bytes."""
        path, first = self._clip_places
        place = read_whole(path, first + number * PLACES.itemsize, PLACES.itemsize, "copy or prepare the source again")
        offset, size = np.frombuffer(place, PLACES)[0].tolist()
        return offset, size

    @cached_property
    def _clip_places(self) -> tuple[str, int]:
        """`audio.npy`, and the offset of its array."""
        path = os.path.abspath(self.folder / AUDIO_INDEX)
        open_files.forget_file(path)
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            first = file.tell()
        if shape != (len(self.index),) or dtype != PLACES:
            raise UserError(f"{path} is not of this source's {len(self.index)} samples; prepare the source again")
        return path, first


def open_sources(
    folders: Sequence[Path],
    tokenizer: str | None = None,
    codebook_size: int | None = None,
    with_audio: bool = False,
) -> list[PreparedSource]:
    """Open several sources and refuse those that do not match.

    Args:
        folders: the sources' folders.
        tokenizer: fingerprint of the tokenizer that their text must have been encoded with.
        codebook_size: size of the codebook of the model's vocabulary.
        with_audio: sources with codes need their prompt audio, too.

    Raises:
        UserError: see `PreparedSource`; or another tokenizer, another codebook, or two codecs among the sources.
    """
    sources = [PreparedSource(folder, with_audio) for folder in folders]
    for source in sources:
        manifest = source.manifest
        if tokenizer is not None and manifest.tokenizer != tokenizer:
            raise UserError(
                f"the shards of '{source.name}' were written with another tokenizer ({manifest.tokenizer}) than this "
                f"run's ({tokenizer}); prepare the source again with this tokenizer, or point tokenizer at the other"
            )
        if codebook_size is not None and manifest.codec and manifest.codec["codebook_size"] != codebook_size:
            raise UserError(
                f"the shards of '{source.name}' hold codes below {manifest.codec['codebook_size']} "
                f"({manifest.codec['name']}), but the vocabulary has {codebook_size}; choose the codec they were made by"
            )
    codecs = {s.manifest.codec["fingerprint"]: s for s in sources if s.manifest.codec and s.manifest.codes}
    if len(codecs) > 1:
        told = ", ".join(f"'{s.name}' by {s.manifest.codec['name']} {print_}" for print_, s in codecs.items())
        raise UserError(f"the sources were encoded by different codecs ({told}); prepare them with one codec")
    types = {s.manifest.codec.get("dtype", "float32"): s for s in sources if s.manifest.codec and s.manifest.codes}
    if len(types) > 1:
        told = ", ".join(f"'{source.name}' in {dtype}" for dtype, source in types.items())
        log.warning("the sources were encoded in different types (%s), so like sounds have slightly other codes", told)
    return sources


def nothing_prepared(folder: Place) -> str:
    """Message for a folder without prepared sources: `data.shards` is the parent of the sources' folders."""
    likely = (folder / "shards", folder.parent) if (folder / MANIFEST).is_file() else (folder / "shards",)
    meant = next((place for place in reversed(likely) if any(prepared_names(place))), None)
    near = f"did you mean {meant}?" if meant else "run python -m vita_audio_pl.prepare, or set data.shards=DIR"
    return f"nothing is prepared in {folder} (a prepared source is a folder there, with {MANIFEST}): {near}"


def prepared_names(folder: Place) -> Iterator[str]:
    """Names of the sources prepared in `folder`, sorted."""
    yield from sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
