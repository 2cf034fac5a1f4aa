"""Kaldi-style directories: `wav.scp`, `text`, and, where they exist, `segments` and `utt2spk`."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from vita_audio_pl.data.readers.base import (
    NO_TRANSCRIPT,
    AudioFile,
    LeftOut,
    Part,
    RawSample,
    Stamp,
    Unreadable,
    attempt,
    stamp_of,
    unreadable,
)
from vita_audio_pl.data.readers.utterances import Utterance, UtteranceOptions
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.places import Place
from vita_audio_pl.text.lines import read_lines, split_fields

NO_SEGMENT, NO_RECORDING, COMMAND = "not a segment", "no recording", "command in wav.scp"

_CHANNELS = {"A": 0, "B": 1, "0": 0, "1": 1}


@dataclass(frozen=True)
class KaldiReader(UtteranceOptions):
    """One Kaldi directory.

    Commands in `wav.scp` (entries that end in `|`) are never run: their utterances are left out and counted. A segment
    that ends at -1 goes to the end of its recording; its optional fifth field is its channel.

    Attributes:
        root: the corpus.
        task, speaker_prompt, lower, join, channel, filters: see `UtteranceOptions`.
        folder: the Kaldi directory below `root`.
        transcripts: its file of transcripts.
        audio_root: folder below `root` that relative paths of `wav.scp` start from.
        utterances_per_part: utterances that one task takes.
    """

    root: Place
    folder: str = "."
    transcripts: str = "text"
    audio_root: str = "."
    utterances_per_part: int = 2000

    @property
    def _tables(self) -> "_Tables":
        folder = self.root / self.folder
        paths = tuple(folder / name for name in ("wav.scp", self.transcripts, "segments", "utt2spk"))
        if not (paths[0].is_file() and paths[1].is_file()):
            raise UserError(
                f"{folder} is not a Kaldi directory: it needs wav.scp and {self.transcripts}; check root and folder"
            )
        return _read_tables(paths, tuple(stamp_of(path) for path in paths))

    def parts(self) -> list[Part]:
        tables = self._tables
        parts, names = [], tables.names
        for first in range(0, len(names), self.utterances_per_part):
            chosen = names[first : first + self.utterances_per_part]
            facts = [repr(tables.facts(name)) for name in chosen]
            identity = hashlib.sha256("\n".join([*facts, self._rules.identity]).encode()).hexdigest()
            name, where = f"{self.folder}:{chosen[0]}", {"first": first, "count": len(chosen)}
            parts.append(Part(name, identity, where, content=f"{name} {len(chosen)}"))
        return parts

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        first, tables = int(part.where["first"]), self._tables
        names = tables.names[first : first + int(part.where["count"])]
        yield from self._rules.samples(attempt(name, self._utterance, name, tables) for name in names)

    def _utterance(self, name: str, tables: "_Tables") -> Utterance:
        recording, start, seconds, channel = name, 0.0, None, None
        if tables.segments is not None:
            recording, start, seconds, channel = _segment(_row(tables.segments, name))
        where = _row(tables.scp, recording)
        if where is None:
            raise LeftOut(NO_RECORDING, f"wav.scp has no recording {recording!r:.200}")
        if where.endswith("|"):
            raise LeftOut(
                COMMAND, f"wav.scp gives the command {where!r:.200}; commands are not run, convert the audio to files"
            )
        if not where:
            raise LeftOut(NO_RECORDING, f"wav.scp has no file for the recording {recording!r:.200}")
        text = _row(tables.text, name)
        if text is None:
            raise LeftOut(NO_TRANSCRIPT, f"it has no line in {self.transcripts}{tables.lost_text}")
        speaker = tables.speakers.get(name, "")
        audio = AudioFile(self.root / self.audio_root / where, start, seconds, channel)
        return Utterance(name, audio, text, speaker if isinstance(speaker, str) else "")


Table: TypeAlias = dict[str, "str | Unreadable"]
"""Key -> rest of the line; a key whose lines cannot be used, and a line that cannot be read, is named in its place."""


class _Tables(NamedTuple):
    scp: Table
    text: Table
    segments: Table | None
    speakers: Table

    @property
    def names(self) -> list[str]:
        return list(self.scp if self.segments is None else self.segments)

    @property
    def lost_text(self) -> str:
        """What is to be said of lines of transcripts that cannot be read."""
        lost = [row for row in self.text.values() if isinstance(row, Unreadable)]
        return f"; {len(lost)} lines of it cannot be read, the first: {lost[0].problem}" if lost else ""

    def facts(self, name: str) -> tuple[object, ...]:
        """Everything that an utterance is made of."""
        row = None if self.segments is None else self.segments.get(name)
        recording = (split_fields(row) or [""])[0] if isinstance(row, str) else name
        return name, row, self.scp.get(recording), self.text.get(name), self.speakers.get(name)


def _row(table: Table, key: str) -> str | None:
    row = table.get(key)
    if isinstance(row, Unreadable):
        raise LeftOut(row.reason, row.problem)
    return row


def _segment(row: str | None) -> tuple[str, float, float | None, int | None]:
    """Recording, start, seconds (None: to its end) and channel of a line of `segments`.

    Raises:
        LeftOut: it is none, or ends before it starts.
    """
    fields = split_fields(row or "")
    try:
        recording, begin, end = fields[:3]
        start, stop = float(begin), float(end)
        channel = _CHANNELS[" ".join(fields[3:])] if fields[3:] else None
    except (ValueError, KeyError):
        raise LeftOut(
            NO_SEGMENT, f"its line in segments is {row!r:.200}, not 'recording start end [channel]'"
        ) from None
    if not (math.isfinite(start) and math.isfinite(stop)) or start < 0 or (stop <= start and stop != -1):
        raise LeftOut(NO_SEGMENT, f"a segment from {begin:.40} to {end:.40} s is none")
    return recording, start, None if stop == -1 else stop - start, channel


@lru_cache(maxsize=1)  # each part is read by itself, and a large corpus takes seconds to look up
def _read_tables(paths: tuple[Place, ...], stamps: tuple[Stamp | None, ...]) -> _Tables:
    scp, text, segments, speakers = (_table(p) if stamp else {} for p, stamp in zip(paths, stamps, strict=True))
    return _Tables(scp, text, segments or None, speakers)


def _table(path: Place) -> Table:
    rows: Table = {}
    try:
        for line in read_lines(path):
            where = f"{path}:{line.number}"
            if line.problem:
                rows[where] = Unreadable(where, f"{where}: {line.problem}", "not UTF-8")
                continue
            fields = split_fields(line.text, 2)
            if not fields:
                continue
            key = fields[0]
            if key in rows:
                rows[key] = Unreadable(key, f"{where}: the key {key!r:.200} comes a second time", "repeated key")
            else:
                rows[key] = fields[1] if len(fields) > 1 else ""
    except UserError as error:
        rows[str(path)] = unreadable(str(path), error, "damaged file")
    return rows
