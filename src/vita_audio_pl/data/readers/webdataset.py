"""Plain WebDataset tars of audio: members of one sample share their name up to the first dot."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vita_audio_pl.data.readers.archives import LARGEST_MEMBER, ArchiveError, members
from vita_audio_pl.data.readers.base import (
    NO_AUDIO,
    NO_TEXT,
    NO_TRANSCRIPT,
    AudioBytes,
    LeftOut,
    Part,
    RawSample,
    Unreadable,
    attempt,
    file_identities,
    is_apple_double,
    parts_matching,
)
from vita_audio_pl.data.readers.utterances import Utterance, UtteranceOptions, speaker_of
from vita_audio_pl.storage.places import Place, relative
from vita_audio_pl.text.lines import load_json

DAMAGED, UNSAFE, TOO_LARGE = "damaged archive", "unsafe member name", "member too large"
REPEATED, APART = "member repeated", "members apart"


@dataclass(frozen=True)
class WebDatasetReader(UtteranceOptions):
    """Tars of `KEY.flac` (or wav, mp3, ...) beside `KEY.txt` or `KEY.json`.

    Members are read in memory and their names never used as paths; names that are absolute or hold `..` are left out.

    Attributes:
        root: the corpus.
        task, speaker_prompt, lower, join, channel, filters: see `UtteranceOptions`.
        files: globs below `root`.
        audio: extensions of audio members.
        text: extension of the member that holds the transcript, as text or JSON.
        text_key, speaker_key: keys of the JSON.
    """

    root: Place
    files: tuple[str, ...] = ("**/*.tar",)
    audio: tuple[str, ...] = ("wav", "flac", "mp3", "ogg", "opus", "m4a")
    text: str = "txt"
    text_key: str = "text"
    speaker_key: str = "speaker"

    def parts(self) -> list[Part]:
        described = json.dumps([self._rules.identity, self.audio, self.text, self.text_key, self.speaker_key])
        rules = hashlib.sha256(described.encode()).hexdigest()[:12]
        paths, broken = parts_matching(self.root, self.files)
        return broken + [
            Part(
                str(relative(path, self.root)),
                f"{content} {rules}",
                {"path": relative(path, self.root).as_posix()},
                path.stat().st_mtime_ns,
                content,
            )
            for path, content in zip(paths, file_identities(paths, self.root), strict=True)
        ]

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        yield from self._rules.samples(self._utterances(self.root / str(part.where["path"])))

    def _utterances(self, path: Place) -> Iterator[Utterance | Unreadable]:
        groups = _Groups(path, self.audio, self.text)
        try:
            for member in members(path):
                name = PurePosixPath(member.name)
                where = f"{path}:{member.name}"
                if is_apple_double(name.name):
                    continue
                if name.is_absolute() or ".." in name.parts:
                    yield Unreadable(where, f"{where}: a member name must not lead anywhere", UNSAFE)
                    continue
                stem, _, extension = name.name.partition(".")
                if member.data is None and groups.wants(extension.lower()):
                    yield Unreadable(where, f"{where}: {member.problem}", TOO_LARGE)
                yield from self._made(groups.add(str(name.with_name(stem)), extension.lower(), member.data))
            yield from self._made(groups.close())
        except ArchiveError as error:
            yield from self._made(groups.close(cut=True))
            rest = f"{path}: the archive is damaged after '{groups.key}': {error}; what follows could not be read"
            yield Unreadable(str(path), rest, DAMAGED, rest=True)
        yield from groups.lacking.values()

    def _made(self, group: "_Group | Unreadable | None") -> Iterator[Utterance | Unreadable]:
        if isinstance(group, Unreadable):
            yield group
        elif group is not None:
            yield attempt(group.where, self._utterance, group)

    def _utterance(self, group: "_Group") -> Utterance:
        text, speaker, facts = self._text(group.text)
        return Utterance(group.id, AudioBytes(f"{group.where}.{group.extension}", group.audio), text, speaker, facts)

    def _text(self, data: bytes) -> tuple[Any, str, dict[str, Any]]:
        try:
            text = data.decode("utf-8-sig")
            if not self.text.endswith("json"):
                return text, "", {}
            values = load_json(text)
        except ValueError as error:
            raise LeftOut(NO_TEXT, f"its .{self.text} cannot be read ({error})") from None
        if not isinstance(values, dict):
            raise LeftOut(NO_TEXT, f"its .{self.text} holds no object")
        if self.text_key not in values:
            raise LeftOut(NO_TRANSCRIPT, f"its .{self.text} has no '{self.text_key}'")
        return values[self.text_key], speaker_of(values.get(self.speaker_key)), values


@dataclass(frozen=True)
class _Group:
    """Audio and transcript of one key."""

    where: str
    id: str
    extension: str
    audio: bytes
    text: bytes


class _Groups:
    """The members that follow one another under one key, and the keys that came before.

    Attributes:
        key: of the group that is being read.
        lacking: keys without audio or transcript, each with what is to be said. They are reported at the end, since their
            other members may stand apart.
    """

    def __init__(self, path: Place, audio: tuple[str, ...], text: str):
        self.path, self._audio, self._text = path, audio, text
        self.key = ""
        self.lacking: dict[str, Unreadable] = {}
        self._members: dict[str, list[bytes | None]] = {}
        self._bytes, self._told = 0, False
        self._seen: set[str] = set()
        self._apart: set[str] = set()

    def wants(self, extension: str) -> bool:
        """Whether samples are made of members of this extension."""
        return extension in self._audio or extension == self._text

    def add(self, key: str, extension: str, data: bytes | None) -> _Group | Unreadable | None:
        """Takes a member (None: one that is not read, which has been reported); returns the group that it ends."""
        ended = self.close() if key != self.key else None
        self.key = key
        self._told |= data is None
        self._bytes += len(data or b"")
        kept = data if self.wants(extension) and self._bytes <= LARGEST_MEMBER else None
        self._members.setdefault(extension, []).append(kept)
        return ended

    def close(self, cut: bool = False) -> _Group | Unreadable | None:
        """The group at hand; None if there is none, if it lacks a member, or if its fault has been reported."""
        key, found, told = self.key, self._members, self._told
        self._members, self._bytes, self._told = {}, 0, False
        where = f"{self.path}:{key}"
        if not found:
            return None
        if key in self._seen:
            self.lacking.pop(key, None)
            if key in self._apart:
                return None
            self._apart.add(key)
            problem = f"{where}: members of this key stand apart in the archive; make it with sorted names"
            return Unreadable(where, problem, APART)
        self._seen.add(key)
        twice = next((extension for extension, data in found.items() if len(data) > 1), None)
        if twice is not None:
            return Unreadable(where, f"{where}: its member .{twice} comes twice", REPEATED)
        audio = next((extension for extension in self._audio if extension in found), None)
        lacks = (NO_AUDIO, "audio") if audio is None else (NO_TRANSCRIPT, f"member .{self._text}")
        if audio is None or self._text not in found:
            if not cut:
                dots = "; a key ends at the first dot of a name" if any("." in extension for extension in found) else ""
                problem = f"{where}: it has no {lacks[1]}, only {', '.join(found)}{dots}"
                self.lacking[key] = Unreadable(where, problem, lacks[0])
            return None
        sound, text = found[audio][0], found[self._text][0]
        if sound is None or text is None:
            problem = f"{where}: its members together are larger than {LARGEST_MEMBER >> 20} MiB"
            return None if told else Unreadable(where, problem, TOO_LARGE)
        return _Group(where, f"{self.path.stem}/{key}", audio, sound, text)
