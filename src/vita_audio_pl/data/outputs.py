"""Finished output of a preparation: the reports of parts, and the shards that contain them.

`<hash>.done.json` is the last file of a shard to be written. For a part's own shard (same hash) it is the task's
report; for a merged shard (`merge.py`) it holds the reports of its parts and where each of them is.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from vita_audio_pl.data.clips import AUDIO_INDEX
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import read_sealed, write_sealed
from vita_audio_pl.storage.places import Place, names_in

DONE, SHARD_INDEX, PLACES = ".done.json", ".index", f".{AUDIO_INDEX}"
TAR, AUDIO = ".tar", ".audio.tar"
SHARD_FILES = (DONE, SHARD_INDEX, PLACES, TAR, AUDIO)
"""Extensions of a shard's files; the report is removed first, since a shard without one belongs to no part."""
_AT_A_TIME = 16  # files in an object store are checked concurrently, because each request is slow

Record = dict[str, Any]
"""Contents of a `.done.json`."""


@dataclass(frozen=True, eq=False)
class Output:
    """A finished part.

    Attributes:
        report: its task's report.
        stem: file name, without extension, of the shard that holds it.
        first: number of its first sample in that shard.
        spans: extension -> byte range of the part's members in that file of the shard; empty = the whole file.
    """

    report: Record
    stem: str
    first: int = 0
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return int(self.report["shard"]["samples"])

    @property
    def bytes(self) -> int:
        """Of codes, text and kept audio."""
        return sum(int(self.report[kind]["bytes"]) for kind in ("shard", "audio_shard") if kind in self.report)


@dataclass(frozen=True, eq=False)
class Outputs:
    """Everything that is finished in a folder.

    Attributes:
        folder: folder of the source.
        records: stem of a shard -> contents of its `.done.json`.
        inside: stem of a shard -> its parts, in order.
        parts: name -> part; its own shard is preferred to a merged one.
    """

    folder: Place
    records: Mapping[str, Record]
    inside: Mapping[str, Sequence[str]]
    parts: Mapping[str, Output]

    @classmethod
    def find(cls, folder: Place, names: Iterable[str] | None = None) -> "Outputs":
        """Scan a folder; shards whose files are missing, truncated or damaged are ignored.

        Args:
            names: listing of the folder, if known.
        """
        listed = names_in(folder) if names is None else names
        while True:
            stems = sorted(name.removesuffix(DONE) for name in listed if name.endswith(DONE))
            with ThreadPoolExecutor(_AT_A_TIME) as pool:
                found = dict(zip(stems, pool.map(lambda stem: _look(folder, stem), stems), strict=True))
            lost = {f"{stem}{DONE}" for stem, record in found.items() if not record}
            if not lost or lost.issubset(listed := names_in(folder)):
                break  # otherwise another job has just merged the missing ones
        records = {stem: record for stem, record in found.items() if record}
        inside: dict[str, list[str]] = {}
        parts: dict[str, Output] = {}
        for stem, record in sorted(records.items(), key=lambda item: "parts" not in item[1]):
            held = _held(stem, record)
            inside[stem] = [name for name, _ in held]
            parts |= {name: output for name, output in held if output is not None}
        return cls(folder, records, inside, parts)

    def unfinished(self, names: Iterable[str]) -> list[str]:
        """The parts that are not finished."""
        return [name for name in names if name not in self.parts]

    def reports(self, names: Iterable[str]) -> list[Record]:
        """Reports of finished parts."""
        return [self.parts[name].report for name in names]

    def give_up(self, names: Collection[str]) -> None:
        """Mark finished parts to be made again; other parts in the same shards are unaffected."""
        for stem, inside in self.inside.items():
            path, record = self.folder / f"{stem}{DONE}", self.records[stem]
            if "parts" not in record:
                if stem in names:
                    path.unlink(missing_ok=True)
            elif not set(inside).isdisjoint(names):
                parts = [{**part, **({"again": True} if part["output"] in names else {})} for part in record["parts"]]
                write_sealed(path, {**record, "parts": parts})


def is_finished(folder: Place, name: str) -> bool:
    """Whether a part has a complete shard of its own."""
    return bool(_look(folder, name))


def _look(folder: Place, stem: str) -> Record | None:
    """Contents of a shard's `.done.json`; None if it, or a file of the shard, is missing or incomplete."""
    try:
        record = read_sealed(folder / f"{stem}{DONE}")
        shards = [record[kind] for kind in ("shard", "audio_shard") if kind in record]
        whole = all((folder / shard["name"]).stat().st_size == shard["bytes"] for shard in shards)
        return record if whole and (folder / f"{stem}{SHARD_INDEX}").is_file() else None
    except (FileNotFoundError, UserError):
        return None


def _held(stem: str, record: Record) -> list[tuple[str, Output | None]]:
    """The parts in a shard, in order; None for a part that is to be made again."""
    if "parts" not in record:
        return [(stem, Output(record, stem))]
    held: list[tuple[str, Output | None]] = []
    first = 0
    for part in record["parts"]:
        spans = {ending: (int(start), int(end)) for ending, (start, end) in part["spans"].items()}
        output = Output(part["report"], stem, first, spans)
        held.append((part["output"], None if part.get("again") else output))
        first += output.samples
    return held
