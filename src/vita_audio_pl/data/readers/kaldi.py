"""Kaldi-style directories: `wav.scp`, `text`, and, where they exist, `segments` and `utt2spk`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vita_audio_pl.data.readers.base import AudioFile, Part, RawSample, Unreadable
from vita_audio_pl.data.readers.utterances import Utterance, UtteranceRules
from vita_audio_pl.errors import UserError


@dataclass(frozen=True)
class KaldiReader:
    """One Kaldi directory.

    Commands in `wav.scp` (entries that end in `|`) are never run: their utterances are left out and counted.

    Attributes:
        root: the corpus.
        task, speaker_prompt, lower, join: see `UtteranceRules`.
        folder: the Kaldi directory below `root`.
        transcripts: its file of transcripts.
        audio_root: folder below `root` that relative paths of `wav.scp` start from.
        utterances_per_part: utterances that one task takes.
    """

    root: Path
    task: str = "asr"
    folder: str = "."
    transcripts: str = "text"
    audio_root: str = "."
    speaker_prompt: bool = False
    lower: bool = False
    join: bool = False
    utterances_per_part: int = 2000

    @cached_property
    def _tables(self) -> tuple[dict[str, str], dict[str, str], dict[str, str], dict[str, str]]:
        """`wav.scp`, `text`, `segments` and `utt2spk` as key -> rest of the line."""
        folder = self.root / self.folder
        scp, text, segments, speakers = (
            _table(folder / name) for name in ("wav.scp", self.transcripts, "segments", "utt2spk")
        )
        if scp is None or text is None:
            raise UserError(
                f"{folder} is no Kaldi directory: it needs wav.scp and {self.transcripts}; check root and folder"
            )
        return scp, text, segments or {}, speakers or {}

    def parts(self) -> list[Part]:
        scp, text, segments, _ = self._tables
        names = list(segments or scp)
        parts = []
        for first in range(0, len(names), self.utterances_per_part):
            chosen = names[first : first + self.utterances_per_part]
            facts = [f"{n} {segments.get(n)} {scp.get(segments.get(n, n).split()[0])} {text.get(n)}" for n in chosen]
            identity = hashlib.sha256("\n".join([*facts, repr(self._rules)]).encode()).hexdigest()
            parts.append(Part(f"{self.folder}:{chosen[0]}", identity, {"first": first, "count": len(chosen)}))
        return parts

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        first = int(part.where["first"])
        scp, _, segments, _ = self._tables
        names = list(segments or scp)[first : first + int(part.where["count"])]
        yield from self._rules.samples(self._utterance(name) for name in names)

    @property
    def _rules(self) -> UtteranceRules:
        return UtteranceRules(self.task, self.speaker_prompt, self.lower, self.join)

    def _utterance(self, name: str) -> Utterance | Unreadable:
        scp, text, segments, speakers = self._tables
        start, seconds, recording = 0.0, None, name
        if segments:
            try:
                recording, begin, end = segments[name].split()
                start, seconds = float(begin), float(end) - float(begin)
            except ValueError:
                return Unreadable(
                    name, f"{name}: its line in segments is {segments[name]!r}, not 'recording start end'"
                )
        where = scp.get(recording, "")
        if where.endswith("|"):
            problem = f"{name}: wav.scp gives the command {where!r}; commands are not run, convert the audio to files"
            return Unreadable(name, problem, "command in wav.scp")
        if not where:
            return Unreadable(name, f"{name}: wav.scp has no recording {recording!r}", "no recording")
        if name not in text:
            return Unreadable(name, f"{name}: it has no line in {self.transcripts}", "no transcript")
        return Utterance(
            name, AudioFile(self.root / self.audio_root / where, start, seconds), text[name], speakers.get(name, "")
        )


def _table(path: Path) -> dict[str, str] | None:
    """Key -> rest of the line; None where there is no such file."""
    if not path.is_file():
        return None
    rows: dict[str, str] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            key, *rest = line.split(maxsplit=1)[:2] or [""]
            if key in rows:
                raise UserError(f"{path}:{number}: the key '{key}' comes a second time; Kaldi tables have unique keys")
            if key:
                rows[key] = rest[0].strip() if rest else ""
    return rows
