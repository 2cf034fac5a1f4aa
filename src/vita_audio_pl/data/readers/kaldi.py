"""Kaldi-style directories: `wav.scp`, `text`, and, where they exist, `segments` and `utt2spk`."""

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeAlias

from vita_audio_pl.data.readers.base import (
    NO_TRANSCRIPT,
    AudioFile,
    LeftOut,
    Part,
    RawSample,
    Unreadable,
    attempt,
    not_plain,
)
from vita_audio_pl.data.readers.kaldi_tables import NOT_UTF8, START, Cursor, Position, Row, SortedTable, Unsorted
from vita_audio_pl.data.readers.utterances import Utterance, UtteranceOptions
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.places import Place
from vita_audio_pl.text.lines import split_fields

NO_SEGMENT, NO_RECORDING, COMMAND = "not a segment", "no recording", "command in wav.scp"
NOT_CUT = "no segment"

Value: TypeAlias = str | Unreadable

_SCP, _TEXT, _SEGMENTS, _SPEAKERS = "wav.scp", "text", "segments", "utt2spk"
_MAIN, _COUNT, _SORTED, _AFTER, _REST = "utterances", "count", "sorted", "after", "rest"  # of a part's place
_LONGEST_NAME = 200  # characters of a part's
_CHANNELS = {"A": 0, "B": 1, "0": 0, "1": 1}


@dataclass(frozen=True)
class KaldiReader(UtteranceOptions):
    """One Kaldi directory.

    Commands in `wav.scp` (entries that end in `|`) are never run: their utterances are left out and counted. A segment
    that ends at -1 extends to the end of its recording; the optional fifth field is the channel. Tables are merged
    while streaming, sorted by key as in Kaldi; utterances are in that order. Transcripts without an utterance are
    reported.

    Attributes:
        root: folder of the corpus.
        task, speaker_prompt, lower, join, channel, filters: see `UtteranceOptions`.
        folder: the Kaldi directory below `root`.
        transcripts: name of the file of transcripts.
        audio_root: folder below `root` that relative paths in `wav.scp` start from.
        utterances_per_part: utterances per task.
    """

    root: Place
    folder: str = "."
    transcripts: str = "text"
    audio_root: str = "."
    utterances_per_part: int = 2000

    def parts(self) -> list[Part]:
        in_memory: set[str] = set()
        while True:
            try:
                return list(self._planned(in_memory))
            except Unsorted as error:
                error.refuse_large()
                in_memory.add(error.table.path.name)

    def _planned(self, in_memory: Collection[str]) -> Iterator[Part]:
        """The parts in order, for tables of which some must be sorted in memory."""
        tables = self._tables(in_memory)
        lists = _Lists(tables, {})
        known = "/".join(table.path.name for table in tables.values() if table.in_memory)
        facts = _Facts()
        where: dict[str, str | int] = {}
        first = ""
        for key, value, at in lists.utterances():
            name = lists.name(key, at)
            if not facts.utterances:
                where, first = {**lists.places(at), _SORTED: known}, name
            for lost, _, _ in lists.lost(key):
                facts.add(lost)
            facts.add((name, *lists.facts(key, value)))
            facts.utterances += 1
            if facts.utterances == self.utterances_per_part:
                yield self._part(first, facts, where)
                facts = _Facts()
        if facts.utterances:
            yield self._part(first, facts, where)
        where, facts = {**lists.places(START), _SORTED: known, _REST: 1}, _Facts()
        for lost, _, _ in lists.lost(None):
            facts.add(lost)
        if facts.lines:
            yield self._part(f"the rest of {self.transcripts}", facts, where)
        lists.read_on()

    def _part(self, first: str, facts: "_Facts", where: dict[str, str | int]) -> Part:
        identity = facts.digest(self._rules.identity)
        name = f"{self.folder}:{first}"
        if len(name) > _LONGEST_NAME:
            name = f"{name[:_LONGEST_NAME]}...{identity[:12]}"
        return Part(name, identity, {**where, _COUNT: facts.utterances}, content=f"{name} {facts.utterances}")

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        tables = self._tables(str(part.where[_SORTED]).split("/"))
        lists = _Lists(tables, part.where)
        yield from self._rules.samples(self._utterances(lists, int(part.where[_COUNT])))
        if _REST in part.where:
            yield from map(partial(self._lost, lists), lists.lost(None))

    def _utterances(self, lists: "_Lists", count: int) -> Iterator[Utterance | Unreadable]:
        for key, value, at in islice(lists.utterances(), count):
            yield from map(partial(self._lost, lists), lists.lost(key))
            yield attempt(lists.name(key, at), self._utterance, lists, key, value, at)

    def _lost(self, lists: "_Lists", row: Row) -> Unreadable:
        name = row[0].decode("utf-8", "backslashreplace")
        table, reason = (_SEGMENTS, NOT_CUT) if lists.has_segments else (_SCP, NO_RECORDING)
        return Unreadable(name, f"{name}: it has a line in {self.transcripts} and none in {table}", reason)

    def _tables(self, in_memory: Collection[str]) -> dict[str, SortedTable]:
        """The existing tables, by name; `segments` only if it is not empty."""
        folder = self.root / self.folder
        names = (_SCP, self.transcripts, _SEGMENTS, _SPEAKERS)
        for path in (folder / name for name in names):
            if problem := not_plain(path):
                raise UserError(problem)
        tables = {
            name: SortedTable(folder / name, (folder / name).name in in_memory)
            for name in names
            if (folder / name).is_file()
        }
        if not {*names[:2]} <= tables.keys():
            raise UserError(
                f"{folder} is not a Kaldi directory: it needs wav.scp and {self.transcripts}; check root and folder"
            )
        for table in tables.values():
            table.check()
        if _SEGMENTS in tables and next(tables[_SEGMENTS].rows(), None) is None:
            del tables[_SEGMENTS]
        return {_TEXT if name == self.transcripts else name: table for name, table in tables.items()}

    def _utterance(self, lists: "_Lists", key: bytes, value: Value, at: Position) -> Utterance:
        name, row, start, seconds, channel = lists.name(key, at), _usable(value), 0.0, None, None
        recording: str = name
        where: str | None = row
        if lists.has_segments:
            recording, start, seconds, channel = _segment(row)
            where = _usable(lists.recording(recording.encode()))
        if where is None:
            raise LeftOut(NO_RECORDING, f"wav.scp has no recording {recording!r:.200}")
        if where.endswith("|"):
            raise LeftOut(
                COMMAND, f"wav.scp gives the command {where!r:.200}; commands are not run, convert the audio to files"
            )
        if not where:
            raise LeftOut(NO_RECORDING, f"wav.scp has no file for the recording {recording!r:.200}")
        text = lists.text(key)
        if isinstance(text, Unreadable) and text.reason == NOT_UTF8:
            raise LeftOut(NO_TRANSCRIPT, f"its line in {self.transcripts} cannot be read: {text.problem}")
        transcript = _usable(text)
        if transcript is None:
            raise LeftOut(NO_TRANSCRIPT, f"it has no line in {self.transcripts}")
        speaker = lists.speaker(key)
        audio = AudioFile(self.root / self.audio_root / where, start, seconds, channel)
        return Utterance(name, audio, transcript, speaker if isinstance(speaker, str) else "")


class _Facts:
    """Running hash of a part's content; counts its utterances and lines."""

    def __init__(self) -> None:
        self.utterances = self.lines = 0
        self._hash = hashlib.sha256()

    def add(self, fact: object) -> None:
        self.lines += 1
        self._hash.update(f"{fact!r}\n".encode("utf-8", "surrogatepass"))

    def digest(self, rules: str) -> str:
        self._hash.update(rules.encode("utf-8", "surrogatepass"))
        return self._hash.hexdigest()


class _Lists:
    """The tables of a directory, read in parallel from the start of a part.

    Args:
        tables: tables by name.
        where: positions in them; tables without one are read from the start.
    """

    def __init__(self, tables: Mapping[str, SortedTable], where: Mapping[str, str | int]):
        self.has_segments = _SEGMENTS in tables
        self._main = tables[_SEGMENTS if self.has_segments else _SCP]
        self._scp = tables[_SCP]
        self._start = _position(where.get(_MAIN))
        self._after = str(where.get(_AFTER, "")).encode("latin-1")
        self._cursors = {
            name: Cursor(tables.get(name), _position(where.get(name)))
            for name in (_TEXT, _SPEAKERS, *([_SCP] if self.has_segments else []))
        }
        self.text, self.speaker = self._cursors[_TEXT].get, self._cursors[_SPEAKERS].get
        if self.has_segments:
            self.recording = self._cursors[_SCP].find

    def utterances(self) -> Iterator[Row]:
        """Rows of the table that names the utterances."""
        return self._main.rows(self._start)

    def lost(self, key: bytes | None) -> Iterator[Row]:
        """Transcripts without an utterance: between the previous utterance and this one, or after the last (None)."""
        for row in self._cursors[_TEXT].before(key):
            if row[0] > self._after:
                yield row
        self._after = key or b""

    def name(self, key: bytes, at: Position) -> str:
        try:
            return key.decode()
        except UnicodeDecodeError:
            return f"{self._main.path}:{at[1]}"

    def facts(self, key: bytes, value: Value) -> tuple[object, ...]:
        """Everything about an utterance except its name."""
        if not self.has_segments:
            return None, value, self.text(key), self.speaker(key)
        recording = value.partition(" ")[0].partition("\t")[0] if isinstance(value, str) else ""
        return value, self.recording(recording.encode()), self.text(key), self.speaker(key)

    def places(self, at: Position) -> dict[str, str | int]:
        """Start of the part whose first utterance is at `at`."""
        ats = {_MAIN: at, **{name: cursor.at for name, cursor in self._cursors.items()}}
        places: dict[str, str | int] = {name: f"{offset}:{number}" for name, (offset, number) in ats.items()}
        return {**places, _AFTER: self._after.decode("latin-1")}

    def read_on(self) -> None:
        """Read every table to its end, to verify that all are sorted."""
        for name, cursor in self._cursors.items():
            if name == _SCP:  # keys were searched for in it, in any order
                cursor = Cursor(self._scp)
            cursor.read_on()


def _position(told: str | int | None) -> Position:
    if told is None:
        return START
    offset, number = str(told).split(":")
    return int(offset), int(number)


def _usable(row: Value | None) -> str | None:
    if isinstance(row, Unreadable):
        raise LeftOut(row.reason, row.problem)
    return row


def _segment(row: str | None) -> tuple[str, float, float | None, int | None]:
    """Recording, start, seconds (None: to its end) and channel of a line of `segments`.

    Raises:
        LeftOut: it is invalid, or ends before it starts.
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
