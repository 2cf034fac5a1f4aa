"""What every miniature is made of, and where they are registered."""

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile


@dataclass(frozen=True)
class Expected:
    """What a split of a miniature becomes.

    Attributes:
        texts: of each sample in order: the transcript for `asr` and `tts`; else `role: text` of its messages, joined by
            line ends, with `<|audio|>` where there is audio.
        seconds: of audio in all samples, voices that are shown included.
        skipped: samples that cannot be used, by reason.
        filtered: samples that are not wanted, by reason.
    """

    texts: Sequence[str]
    seconds: float = 0.0
    skipped: Mapping[str, int] = field(default_factory=dict)
    filtered: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Miniature:
    """A corpus in a publisher's layout.

    Attributes:
        source: name of the recipe that reads it.
        name: of the layout, where a recipe reads several.
        make: writes it into a folder, which is the recipe's `root`.
        expected: by split.
    """

    source: str
    name: str
    make: Callable[[Path], None]
    expected: Mapping[str, Expected]


MINIATURES: list[Miniature] = []


def miniature(
    source: str, name: str = "", **expected: Expected
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Registers the decorated function as the maker of a corpus; `expected` by split (`train=...`, `dev=...`)."""

    def register(make: Callable[[Path], None]) -> Callable[[Path], None]:
        MINIATURES.append(Miniature(source, name or "as published", make, expected))
        return make

    return register


_SUBTYPES = {"OGG": "VORBIS", "OPUS": "OPUS", "MP3": "MPEG_LAYER_III", "FLAC": "PCM_16", "WAV": "PCM_16"}


def sound(seconds: float, rate: int = 16_000, format: str = "WAV", hz: float = 200.0, channels: int = 1) -> bytes:
    """A tone as a file of `format`: WAV, FLAC, OGG (Vorbis), OPUS (in Ogg) or MP3."""
    wave = 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    file = io.BytesIO()
    container = "OGG" if format == "OPUS" else format
    samples = np.repeat(wave[:, None], channels, axis=1).astype(np.float32)
    soundfile.write(file, samples, rate, format=container, subtype=_SUBTYPES[format])
    return file.getvalue()


def write(path: Path, content: str | bytes) -> None:
    """A file, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    """A tar of these members, in order; compressed where the name ends in .gz or .tgz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A parquet file of these rows."""
    import pyarrow as pa
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(list(rows)), path)
