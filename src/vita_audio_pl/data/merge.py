"""Merging finished parts, in order, into shards of at least a given size.

Which parts are merged depends on their order and sizes only, and the bytes of a merged shard on the bytes of its parts,
regardless of who made them and of interruptions. Every block is checked against its checksum while it is copied, and
the merged shard is read back before anything is removed.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from vita_audio_pl.data.clips import PLACES as PLACES_DTYPE
from vita_audio_pl.data.index import MOST_BYTES, OFFSET_UNIT, IndexPiece, merge_indexes
from vita_audio_pl.data.outputs import AUDIO, DONE, PLACES, SHARD_INDEX, TAR, Output, Outputs, Record
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import FileSum, SummedFile, VerifiedFile, find_damage, refuse, write_sealed
from vita_audio_pl.storage.copies import on_this_machine
from vita_audio_pl.storage.files import AtomicFile, write_array
from vita_audio_pl.storage.places import Place

_RULES = 1  # raised when the same parts would be merged differently
_KINDS = {TAR: "shard", AUDIO: "audio_shard"}
_TAR_BLOCK = 512
_AGAIN = "delete that file and rerun the command: its parts are made again"


def planned_shards(names: Sequence[str], outputs: Outputs, least: int) -> dict[str, list[str]]:
    """The merged shards for the finished parts `names`, in order: each with its stem and its parts.

    Args:
        least: minimum size in bytes; 0 keeps every part as its own shard. A shard also ends where the next part would
            exceed the offsets of the index.
    """
    groups: list[list[str]] = []
    size, full = 0, True
    for name in names:
        more = outputs.parts[name].bytes
        if full or size + more > MOST_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += more
        full = size >= least
    return {_stem(group, outputs): group for group in groups}


def _stem(group: Sequence[str], outputs: Outputs) -> str:
    """A single part keeps its name; the name of several is derived from their names and bytes."""
    if len(group) == 1:
        return group[0]
    facts = [_RULES, *([name, outputs.parts[name].report["sums"]] for name in group)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def merge_shard(stem: str, group: Sequence[str], outputs: Outputs) -> Record:
    """Make one planned shard unless it exists; returns the contents of its `.done.json`.

    Raises:
        UserError: the shard of a part is damaged.
    """
    if list(outputs.inside.get(stem, ())) == list(group) and all(name in outputs.parts for name in group):
        record = outputs.records[stem]
        if any(part.get("again") for part in record.get("parts", ())):  # parts made again with the same bytes
            parts = [
                {"output": name, "spans": part["spans"], "report": outputs.parts[name].report}
                for name, part in zip(group, record["parts"], strict=True)
            ]
            record = {**record, "parts": parts}
            write_sealed(outputs.folder / f"{stem}{DONE}", record)
        return record
    return _Merging(stem, group, outputs).run()


class _Merging:
    """One shard under construction, from parts in other files."""

    def __init__(self, stem: str, group: Sequence[str], outputs: Outputs):
        self.stem, self.group, self.folder = stem, group, outputs.folder
        self.members = [outputs.parts[name] for name in group]
        self.records = {member.stem: outputs.records[member.stem] for member in self.members}
        self.kinds = [ending for ending, kind in _KINDS.items() if kind in self.members[0].report]

    def run(self) -> Record:
        endings = [SHARD_INDEX, *self.kinds, *([PLACES] if AUDIO in self.kinds else [])]
        places = [(stem, ending) for stem in self.records for ending in endings]
        with on_this_machine([self.folder / f"{stem}{ending}" for stem, ending in places]) as copies:
            self.local = dict(zip(places, copies, strict=True))
            sums: dict[str, FileSum] = {}
            spans = {}
            for ending in self.kinds:
                spans[ending] = self._join_blocks(ending, sums)
            merge_indexes([self._piece(n, spans[TAR][n]) for n in range(len(self.members))], self._file(SHARD_INDEX))
            if AUDIO in self.kinds:
                moved = zip(self.members, spans[AUDIO], strict=True)
                write_array(self._file(PLACES), np.concatenate([self._clips(member, span) for member, span in moved]))
        refuse(find_damage(self.folder, sums), "rerun the command")
        record = self._record(sums, spans)
        write_sealed(self._file(DONE), record)
        return record

    def _file(self, ending: str) -> Place:
        return self.folder / f"{self.stem}{ending}"

    def _record(self, sums: dict[str, FileSum], spans: dict[str, list[tuple[int, int]]]) -> Record:
        if len(self.members) == 1:  # copied out of a merged shard
            report = self.members[0].report
            if {name: made.to_json() for name, made in sums.items()} != report["sums"]:
                raise UserError(f"{self._file(TAR)} is not what the part's task has written: {_AGAIN}")
            return report
        samples = sum(member.samples for member in self.members)
        record: Record = {"format": 1}
        for ending in self.kinds:
            name = self._file(ending).name
            record[_KINDS[ending]] = {"name": name, "bytes": sums[name].bytes, "samples": samples}
        record["sums"] = {name: made.to_json() for name, made in sums.items()}
        record["parts"] = [
            {"output": name, "spans": {ending: spans[ending][n] for ending in self.kinds}, "report": member.report}
            for n, (name, member) in enumerate(zip(self.group, self.members, strict=True))
        ]
        return record

    def _join_blocks(self, ending: str, sums: dict[str, FileSum]) -> list[tuple[int, int]]:
        """Write the blocks of all members into one tar; returns where each member begins and ends."""
        spans, number = [], 0
        with ExitStack() as stack:
            whole = stack.enter_context(AtomicFile(self._file(ending)))
            summed = SummedFile(whole.file)
            with tarfile.open(fileobj=summed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for member in self.members:
                    start = tar.offset
                    for extension, data in self._blocks(member, ending):
                        info = tarfile.TarInfo(f"{number:06d}.{extension}")
                        info.size, info.mtime = len(data), 0
                        tar.addfile(info, io.BytesIO(data))
                        number += 1
                    spans.append((start, tar.offset))
            whole.finish()
            sums[self._file(ending).name] = summed.sum
        return spans

    def _blocks(self, member: Output, ending: str) -> Iterator[tuple[str, bytes]]:
        """The members of a part's tar with their extensions, checked against the tar's checksums."""
        path = self.local[member.stem, ending]
        record = self.records[member.stem]
        total = record[_KINDS[ending]]
        expected = FileSum.from_json(record["sums"][total["name"]])
        at, end = member.spans.get(ending, (0, total["bytes"]))
        try:
            with VerifiedFile(path, expected) as file:
                while at < end:
                    head = _read(file, at, _TAR_BLOCK)
                    if not any(head):
                        break
                    info = tarfile.TarInfo.frombuf(head, "utf-8", "strict")
                    yield Path(info.name).suffix[1:], _read(file, at + _TAR_BLOCK, info.size)
                    at += _TAR_BLOCK + -(-info.size // _TAR_BLOCK) * _TAR_BLOCK
        except (ValueError, tarfile.TarError) as error:
            raise UserError(f"{self.folder / total['name']} cannot be merged ({error}); {_AGAIN}") from error

    def _piece(self, number: int, span: tuple[int, int]) -> IndexPiece:
        member = self.members[number]
        before, _ = member.spans.get(TAR, (0, 0))
        samples = range(member.first, member.first + member.samples)
        return IndexPiece(self.local[member.stem, SHARD_INDEX], samples, moved=span[0] - before)

    def _clips(self, member: Output, span: tuple[int, int]) -> np.ndarray:
        """Places of a part's audio within the merged shard."""
        before, _ = member.spans.get(AUDIO, (0, 0))
        places: np.ndarray = np.load(self.local[member.stem, PLACES])[
            member.first : member.first + member.samples
        ].copy()
        if places.dtype != PLACES_DTYPE or len(places) != member.samples:
            raise UserError(f"{self.folder / member.stem}{PLACES} is not of its shard: {_AGAIN}")
        places["offset"] = places["offset"].astype(np.int64) + (span[0] - before) // OFFSET_UNIT
        return places


def _read(file: VerifiedFile, start: int, size: int) -> bytes:
    data = bytearray(size)
    file.read_into(start, data)
    return bytes(data)
