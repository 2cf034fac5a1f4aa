"""A prepared source on disk: its manifest, its index and its shards, checked against one another and read at random.

`<shards>/<source>/` holds `manifest.json`, `index.bin`, the shards (`*.tar`) and, where samples were found broken later,
`quarantine.json`.
"""

import json
import mmap
import resource
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vita_audio_pl.data.clips import AUDIO_INDEX, unpack_clips
from vita_audio_pl.data.index import OFFSET_UNIT, Index
from vita_audio_pl.data.samples import TokenizedSample, checksum, sample_size, unpack_sample
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.files import write_json
from vita_audio_pl.storage.owned import Kind

FORMAT = 1
MANIFEST, INDEX, QUARANTINE, SKIPPED = "manifest.json", "index.bin", "quarantine.json", "skipped.jsonl"
_HASH = "[0-9a-f]" * 20
PART_FILES = tuple(f"{_HASH}.{kind}" for kind in ("tar", "index", "done.json", "audio.tar", "audio.npy"))
"""What a part leaves, named by a hash of its content and of how it was tokenised."""
SOURCE = Kind(
    "prepared source", (MANIFEST, INDEX, QUARANTINE, SKIPPED, AUDIO_INDEX, *PART_FILES), sign=("*.done.json",)
)


@cache
def most_maps() -> int:
    """Shards of a source that one process keeps open: a quarter of the file handles it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(16, (65_536 if soft == resource.RLIM_INFINITY else soft) // 4)


class BrokenSample(Exception):
    """A sample that cannot be read; the message says where and why."""


@dataclass(frozen=True)
class ShardFile:
    """One shard of a source: file name, size, number of samples."""

    name: str
    bytes: int
    samples: int


@dataclass(frozen=True)
class Manifest:
    """What a prepared source is made of.

    Attributes:
        source, task: name and task of the source.
        tokenizer: fingerprint of the text tokenizer.
        codec: name, fingerprint, codes_per_second and codebook_size of the codec.
        samples, seconds, text_tokens, codes: totals; seconds of audio.
        shards: in the order of the index's shard numbers.
        index_crc: checksum of the index that belongs to these shards.
        audio_shards: the audio outside answers, shard by shard, if it was kept for continuous encoders.
        report: counts of what was skipped, cut or broken, by reason.
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

    def save(self, folder: Path) -> None:
        """Writes `manifest.json`, the last file of a source to appear."""
        write_json(folder / MANIFEST, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, folder: Path, name: str = MANIFEST) -> "Manifest":
        """Reads `manifest.json`.

        Raises:
            UserError: the source is not prepared, or its manifest is damaged, of another format, or names files outside.
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
            raise UserError(
                f"the source '{folder.name}' is not prepared: {path} is missing; run "
                f"python -m vita_audio_pl.prepare source={folder.name}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); prepare the source again") from error


class PreparedSource:
    """Random access to the samples of a prepared source. Cheap to send to worker processes: files are opened there.

    Args:
        folder: the source's folder.
        with_audio: the audio outside answers is needed, too.

    Raises:
        UserError: not prepared, a shard missing or of another size, an index that is not of these shards, or audio that
            was not kept.
    """

    def __init__(self, folder: Path, with_audio: bool = False):
        self.folder = folder
        self.manifest = Manifest.load(folder)
        self.index = Index(folder / INDEX)
        again = f"run python -m vita_audio_pl.data lint source={folder.name}, then prepare the source again"
        if self.index.crc != self.manifest.index_crc or len(self.index) != self.manifest.samples:
            raise UserError(f"{folder / INDEX} does not belong to the shards beside it: {again}")
        for shard in (*self.manifest.shards, *(self.manifest.audio_shards if with_audio else ())):
            path = folder / shard.name
            if not path.is_file():
                raise UserError(f"the shard {path} is missing: {again}")
            if path.stat().st_size != shard.bytes:
                raise UserError(
                    f"the shard {path} has {path.stat().st_size} bytes where the manifest says {shard.bytes}: {again}"
                )
        if with_audio and not self.manifest.audio_shards and self.index["prompt_codes"].any():
            raise UserError(
                f"'{folder.name}' was prepared without the audio that continuous input hears; prepare it with "
                "keep_audio=true"
            )
        self._maps: dict[str, memoryview] = {}

    @property
    def name(self) -> str:
        return self.folder.name

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.manifest = state["folder"], state["manifest"]
        self.index = Index(self.folder / INDEX)
        self._maps = {}

    @cached_property
    def quarantined(self) -> dict[int, str]:
        """Samples found broken, and why."""
        path = self.folder / QUARANTINE
        try:
            return {int(sample): str(reason) for sample, reason in json.loads(path.read_text("utf-8")).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); delete it and run the lint command again") from error

    def quarantine(self, broken: dict[int, str]) -> None:
        """Adds samples to `quarantine.json`; they are never planned again."""
        merged = self.quarantined | broken
        write_json(self.folder / QUARANTINE, {str(sample): merged[sample] for sample in sorted(merged)})
        self.__dict__.pop("quarantined", None)

    def read(self, number: int) -> TokenizedSample:
        """One sample, its checksum verified.

        Raises:
            BrokenSample: its bytes are not what was written.
        """
        shard = self.manifest.shards[int(self.index["shard"][number])]
        try:
            data = self._map(shard.name)
            start = int(self.index["offset"][number]) * OFFSET_UNIT
            packed = data[start : start + sample_size(data[start : start + 4])]
            if checksum(packed) != self.index["crc"][number]:
                raise ValueError("its checksum does not agree")
            return unpack_sample(packed)
        except (OSError, ValueError) as error:
            raise BrokenSample(f"sample {number} of '{self.name}' in {self.folder / shard.name}: {error}") from error

    def read_clips(self, number: int) -> list[np.ndarray]:
        """The audio outside the answers of a sample, `(samples,) float32` at 16 kHz each.

        Raises:
            BrokenSample: it is not what was written.
        """
        shard = self.manifest.audio_shards[int(self.index["shard"][number])]
        try:
            offset, size = self._clip_places[number].tolist()
            start = offset * OFFSET_UNIT
            return unpack_clips(self._map(shard.name)[start : start + size])
        except (OSError, ValueError, RuntimeError) as error:
            raise BrokenSample(f"sample {number} of '{self.name}' in {self.folder / shard.name}: {error}") from error

    @cached_property
    def _clip_places(self) -> np.ndarray:
        places: np.ndarray = np.load(self.folder / AUDIO_INDEX, mmap_mode="r")
        return places

    def _map(self, name: str) -> memoryview:
        found = self._maps.get(name)
        if found is None:
            if len(self._maps) >= most_maps():  # every map holds a file handle
                self._maps.pop(next(iter(self._maps)))
            with open(self.folder / name, "rb") as file:
                found = self._maps[name] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return found


def open_sources(
    folders: Sequence[Path],
    tokenizer: str | None = None,
    codebook_size: int | None = None,
    with_audio: bool = False,
) -> list[PreparedSource]:
    """Opens several sources and refuses those that do not fit together.

    Args:
        folders: the sources' folders.
        tokenizer: fingerprint that their text must have been encoded with.
        codebook_size: size of the codebook of the model's vocabulary.
        with_audio: sources with codes need the audio outside their answers, too.

    Raises:
        UserError: as `PreparedSource`, another tokenizer, another codebook, or two codecs among the sources.
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
    return sources


def prepared_names(folder: Path) -> Iterator[str]:
    """Names of the sources prepared in `folder`, sorted."""
    yield from sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
