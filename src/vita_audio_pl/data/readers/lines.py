"""Transcript lists in text files, one utterance per line, with recordings in files named after them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from vita_audio_pl.data.readers.base import (
    NO_TRANSCRIPT,
    AudioFile,
    LeftOut,
    Part,
    RawSample,
    Unreadable,
    attempt,
    audio_ref,
    broken_part,
    parts_matching,
)
from vita_audio_pl.data.readers.templates import PLACES, check_pattern, columns_in, filled, groups_of, places_of
from vita_audio_pl.data.readers.utterances import Utterance, UtteranceOptions
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.places import Place, relative
from vita_audio_pl.text.lines import line_blocks, read_block, read_lines

NO_LINE = "not a line"


@dataclass(frozen=True)
class LinesReader(UtteranceOptions):
    """Lists of transcripts.

    A line is parsed by `line`, a regular expression that must match all of it. Its named groups are columns: `text`,
    `id` and `speaker` have their usual meaning, and all of them may be used in braces in `audio` and `transcript`, as
    may `list` (name of the list, without extension), `folder` (its folder below `root`) and `parent` (the folder
    above).

    Attributes:
        root: folder of the corpus.
        files: globs of lists below `root`.
        line: pattern of a line.
        audio: path of the recording below `root`.
        skip: pattern of lines to skip, such as a header or lines of another split.
        transcript: path of the file with the transcript, if the line does not contain it.
        transcript_line: pattern of that file's first line, with the group `text`.
        task, speaker_prompt, lower, join, channel, filters: see `UtteranceOptions`.
        lines_per_part: lines per task.
    """

    root: Place
    line: str
    audio: str
    files: tuple[str, ...] = ("*.txt",)
    skip: str = ""
    transcript: str = ""
    transcript_line: str = "(?P<text>.*)"
    lines_per_part: int = 2000

    def __post_init__(self) -> None:
        columns = check_pattern(self.line, "line") | {*PLACES}
        check_pattern(self.skip, "skip")
        told = check_pattern(self.transcript_line, "transcript_line") if self.transcript else columns
        if "text" not in told:
            raise UserError(f"'{'transcript_line' if self.transcript else 'line'}' needs the group text: (?P<text>.*)")
        for template in (self.audio, self.transcript):
            if unknown := sorted(set(columns_in(template)) - columns):
                raise UserError(
                    f"{template!r:.200} names {{{unknown[0]}}}, which is not one of {', '.join(sorted(columns))}"
                )

    def parts(self) -> list[Part]:
        described = [self.line, self.audio, self.skip, self.transcript, self.transcript_line, self._rules.identity]
        rules = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]
        paths, parts = parts_matching(self.root, self.files)
        for path in paths:
            name = relative(path, self.root).as_posix()
            try:
                for block in line_blocks(path, self.lines_per_part):
                    where: dict[str, str | int] = {
                        "path": name,
                        "offset": block.offset,
                        "line": block.first,
                        "lines": block.lines,
                    }
                    parts.append(
                        Part(f"{name}:{block.first}", f"{name} {block.digest} {rules}", where, content=block.digest)
                    )
            except UserError as error:
                parts.append(broken_part(name, f"{name} {rules}", error))
        return parts

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        yield from self._rules.samples(self._utterances(part.where))

    def _utterances(self, place: Mapping[str, str | int]) -> Iterator[Utterance | Unreadable]:
        name = PurePosixPath(str(place["path"]))
        known = places_of(name)
        for line in read_block(self.root / name, int(place["offset"]), int(place["line"]), int(place["lines"])):
            where = f"{name}:{line.number}"
            if line.problem:
                yield Unreadable(where, f"{where}: {line.problem}", "not UTF-8")
            elif line.text.strip():
                made = attempt(where, self._utterance, where, line.text, known)
                if made is not None:
                    yield made

    def _utterance(self, where: str, line: str, known: Mapping[str, str]) -> Utterance | None:
        if self.skip and groups_of(self.skip, line, whole=False) is not None:
            return None
        found = groups_of(self.line, line)
        if found is None:
            raise LeftOut(NO_LINE, f"{line!r:.200} is not as the recipe says: {self.line!r:.200}")
        columns = {**known, **found}
        audio = audio_ref(filled(self.audio, columns), self.root, where)
        text = self._transcript(columns, where) if self.transcript else found["text"]
        return Utterance(found.get("id") or where, audio, text, found.get("speaker", ""), found)

    def _transcript(self, columns: Mapping[str, str], where: str) -> str:
        file = audio_ref(filled(self.transcript, columns), self.root, where)
        if not isinstance(file, AudioFile) or not file.path.is_file():
            raise LeftOut(NO_TRANSCRIPT, f"there is no file {file!s:.300} with its transcript")
        first = next(read_lines(file.path), None)
        if first is None or not first.text.strip():
            raise LeftOut(NO_TRANSCRIPT, f"{file.path}: {first.problem if first and first.problem else 'it is empty'}")
        found = groups_of(self.transcript_line, first.text)
        if found is None:
            raise LeftOut(NO_LINE, f"{file.path}: {first.text!r:.200} is not as the recipe says")
        return found["text"]
