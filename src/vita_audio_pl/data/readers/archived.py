"""Tars of audio with transcripts in separate tables, as several corpora are published on the Hugging Face hub."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath

from vita_audio_pl.config.fields import did_you_mean
from vita_audio_pl.data.readers.archives import ArchiveError, Member, members
from vita_audio_pl.data.readers.base import (
    NO_AUDIO,
    NO_TRANSCRIPT,
    AudioBytes,
    LeftOut,
    Part,
    RawSample,
    Stamp,
    Unreadable,
    attempt,
    broken_part,
    file_identities,
    is_apple_double,
    parts_matching,
    stamp_of,
)
from vita_audio_pl.data.readers.table_files import Row, pieces, rows
from vita_audio_pl.data.readers.templates import check_pattern, columns_in, filled, groups_of
from vita_audio_pl.data.readers.utterances import Utterance, UtteranceOptions, speaker_of
from vita_audio_pl.data.readers.webdataset import DAMAGED, TOO_LARGE, UNSAFE
from vita_audio_pl.errors import UserError, shown
from vita_audio_pl.storage.places import Place, relative

_COLUMNS = ("audio", "text", "id", "speaker")
REPEATED_KEY = "repeated key"
_ROWS = 1 << 16  # rows of a table that are read at a time


@dataclass(frozen=True)
class ArchivesReader(UtteranceOptions):
    """Tars (plain or compressed) and tables; a recording belongs to the row that names its member.

    Members are read in memory and their names never used as paths. Unreadable rows of a table are reported with its
    first tar; rows without a recording are not noticed, since a tar holds only part of its table.

    Attributes:
        root: folder of the corpus.
        place: pattern of a tar's path below `root`, with named groups.
        table: path of the tar's table (.tsv, .csv, .jsonl or .parquet), with those groups in braces.
        columns: the columns for `audio` (the member, with or without folders and extension) and `text`, and optionally
            `id` and `speaker`.
        files: globs of the tars below `root`.
        audio: extensions of members that are recordings.
        task, speaker_prompt, lower, join, channel, filters: see `UtteranceOptions`. Filters see the row, and the
            groups.
    """

    root: Place
    place: str
    table: str
    columns: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ("**/*.tar",)
    audio: tuple[str, ...] = ("wav", "flac", "mp3", "ogg", "opus")

    def __post_init__(self) -> None:
        groups = check_pattern(self.place, "place")
        if unknown := sorted(set(columns_in(self.table)) - groups):
            raise UserError(f"{self.table!r:.200} names {{{unknown[0]}}}, which is not a group of 'place'")
        if unknown := sorted(set(self.columns) - set(_COLUMNS)):
            raise UserError(
                f"a table beside archives knows no column '{unknown[0]}'; it knows {', '.join(_COLUMNS)}{did_you_mean(unknown[0], _COLUMNS)}"
            )
        if not {"audio", "text"} <= set(self.columns):
            raise UserError("a table beside archives needs the columns 'audio' and 'text': say what they are called")

    def parts(self) -> list[Part]:
        described = [self.place, self.table, dict(self.columns), self.audio, self._rules.identity]
        rules = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]
        paths, parts = parts_matching(self.root, self.files)
        tables: dict[str, str] = {}
        for path, content in zip(paths, file_identities(paths, self.root), strict=True):
            name = relative(path, self.root).as_posix()
            try:
                table = self._table_of(name)[0]
                where: dict[str, str | int] = {"path": name, "first": int(table not in tables)}
                if table not in tables:
                    tables[table] = file_identities([self.root / table], self.root)[0]
                identity, changed = f"{content} {tables[table]} {rules}", path.stat().st_mtime_ns
                parts.append(Part(name, identity, where, changed, content))
            except UserError as error:
                parts.append(broken_part(name, f"{content} {rules}", error))
        return parts

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        yield from self._rules.samples(self._utterances(str(part.where["path"]), bool(part.where["first"])))

    def _table_of(self, name: str) -> tuple[str, dict[str, str]]:
        """Path of a tar's table below `root`, and the groups matched in the tar's own path."""
        groups = groups_of(self.place, name)
        if groups is None:
            raise UserError(f"{name}: its path is not as the recipe says: {self.place!r:.200}")
        table = filled(self.table, groups)
        if ".." in PurePosixPath(table).parts or not (self.root / table).is_file():
            raise UserError(f"{name}: there is no table {table!r:.200} of its transcripts")
        return table, groups

    def _utterances(self, name: str, first: bool) -> Iterator[Utterance | Unreadable]:
        path = self.root / name
        table, groups = self._table_of(name)
        wanted = tuple(dict.fromkeys((*self.columns.values(), *self.filters.columns)))
        known = _read_table(self.root / table, stamp_of(self.root / table), self.columns["audio"], wanted, self.audio)
        if first:
            yield from (row for row in known.values() if isinstance(row, Unreadable) and row.reason != REPEATED_KEY)
        last = "the beginning"
        try:
            for member in members(path):
                inner = PurePosixPath(member.name)
                if is_apple_double(inner.name) or inner.suffix[1:].lower() not in self.audio:
                    continue
                where, last = f"{path}:{member.name}", member.name
                yield attempt(where, self._utterance, where, member, inner, known, groups)
        except ArchiveError as error:
            rest = f"{path}: the archive is damaged after '{last}': {error}; what follows could not be read"
            yield Unreadable(str(path), rest, DAMAGED, rest=True)

    def _utterance(
        self,
        where: str,
        member: Member,
        inner: PurePosixPath,
        known: "Mapping[str, Row | Unreadable]",
        groups: Mapping[str, str],
    ) -> Utterance:
        if inner.is_absolute() or ".." in inner.parts:
            raise LeftOut(UNSAFE, "a member name must not lead anywhere")
        if member.data is None:
            raise LeftOut(TOO_LARGE, member.problem)
        row = known.get(inner.stem)
        if row is None:
            raise LeftOut(NO_TRANSCRIPT, "no row of its table names it")
        if isinstance(row, Unreadable):
            raise LeftOut(row.reason, row.problem)
        values = {column: row.get(name) for column, name in self.columns.items()}
        if values["text"] is None and self.columns["text"] not in row:
            raise LeftOut("no such column", f"its table has no column {self.columns['text']!r:.100}")
        id = speaker_of(values.get("id")) or inner.stem
        speaker = speaker_of(values.get("speaker"))
        return Utterance(id, AudioBytes(where, member.data), values["text"], speaker, {**groups, **row})


@lru_cache(maxsize=1)  # the tars of a table are read consecutively
def _read_table(
    path: Place, stamp: Stamp | None, audio: str, wanted: tuple[str, ...], extensions: tuple[str, ...]
) -> dict[str, Row | Unreadable]:
    """The rows of a table by the stem of their recording, with the requested columns only."""
    found: dict[str, Row | Unreadable] = {}
    for _, place in pieces(path, _ROWS):
        for where, row in rows(path, place, wanted):
            if isinstance(row, Unreadable):
                found[where] = row
                continue
            value = row.get(audio)
            if not isinstance(value, str) or not value:
                found[where] = Unreadable(where, f"{where}: {audio!r:.100} is {shown(value)}", NO_AUDIO)
                continue
            name = PurePosixPath(value).name
            stem, _, extension = name.rpartition(".")
            key = stem if extension.lower() in extensions else name
            if key in found:
                problem = f"{where}: {value!r:.200} comes a second time"
                found[key] = Unreadable(where, problem, REPEATED_KEY)
            else:
                found[key] = {column: row[column] for column in wanted if column in row}
    return found
