"""Long recordings and lists of the utterances in them: WenetSpeech's and GigaSpeech's JSON, and Praat's TextGrids."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from vita_audio_pl.config.fields import did_you_mean
from vita_audio_pl.data.readers.base import (
    NO_AUDIO,
    NO_SAMPLE,
    AudioFile,
    Filtered,
    LeftOut,
    Part,
    RawSample,
    Unreadable,
    attempt,
    audio_ref,
    broken_part,
    file_identities,
    file_parts,
    parts_matching,
)
from vita_audio_pl.data.readers.table_files import parsed_row
from vita_audio_pl.data.readers.templates import PLACES, columns_in, filled, places_of
from vita_audio_pl.data.readers.utterances import Utterance, UtteranceOptions, speaker_of
from vita_audio_pl.errors import UserError, kind_in_words, shown
from vita_audio_pl.storage.places import Place, relative
from vita_audio_pl.text.json_lists import ElementBlock, element_blocks, read_elements

NO_SEGMENT = "not a segment"

_KEYS = {"path": "path", "segments": "segments", "id": "sid", "start": "begin_time", "end": "end_time", "text": "text"}
_KEYS |= {"speaker": "speaker", "subsets": "subsets"}


def _piece(audio: AudioFile, start: Any, end: Any) -> AudioFile:
    """The piece of a recording from `start` to `end`, in seconds.

    Raises:
        LeftOut: it is empty or invalid.
    """
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in (start, end))
    if not numbers or not 0 <= start < end:
        raise LeftOut(NO_SEGMENT, f"a segment from {shown(start)} to {shown(end)} s is none")
    return AudioFile(audio.path, float(start), float(end) - float(start))


@dataclass(frozen=True)
class RecordingsReader(UtteranceOptions):
    """A JSON list of recordings, each an object with its path and a list of its segments.

    Attributes:
        root: folder of the corpus, which paths start from.
        files: globs of lists below `root`.
        list_key: key of the list in its file.
        keys: names of keys that differ from `path`, `segments` (of a recording), `sid`, `begin_time`,
            `end_time` (in seconds), `text`, `speaker`, `subsets` (of a segment): such as {text: text_tn}.
        subset: only segments with this entry in their `subsets`; empty takes all.
        task, speaker_prompt, lower, join, channel, filters: see `UtteranceOptions`. Filters see the keys of the segment
            and of its recording.
        recordings_per_part: recordings per task.
    """

    root: Place
    files: tuple[str, ...] = ("*.json",)
    list_key: str = "audios"
    keys: Mapping[str, str] = field(default_factory=dict)
    subset: str = ""
    recordings_per_part: int = 20

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.keys) - set(_KEYS)):
            raise UserError(
                f"a recording and its segments have no '{unknown[0]:.100}'; they have {', '.join(_KEYS)}{did_you_mean(unknown[0], _KEYS)}"
            )

    def parts(self) -> list[Part]:
        described = json.dumps([self.list_key, dict(self.keys), self.subset, self._rules.identity])
        rules = hashlib.sha256(described.encode()).hexdigest()[:12]
        paths, parts = parts_matching(self.root, self.files)
        for path, content in zip(paths, file_identities(paths, self.root), strict=True):
            name, changed = relative(path, self.root).as_posix(), path.stat().st_mtime_ns
            try:
                for block in element_blocks(path, self.recordings_per_part, self.list_key):
                    identity = f"{content} {rules} {block.first} {block.count}"
                    where = {"path": name, **vars(block)}
                    recordings = f"{content} {block.first} {block.count}"
                    parts.append(Part(f"{name}:{block.first}", identity, where, changed, recordings))
            except UserError as error:
                parts.append(broken_part(name, f"{content} {rules}", error))
        return parts

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        place, path = part.where, self.root / str(part.where["path"])
        block = ElementBlock(int(place["first"]), int(place["count"]), int(place["offset"]))
        yield from self._rules.samples(self._utterances(path, block))

    def _utterances(self, path: Place, block: ElementBlock) -> Iterator[Utterance | Unreadable]:
        keys = {**_KEYS, **self.keys}
        for number, text in enumerate(read_elements(path, block), block.first + 1):
            where = f"{path}:{number}"
            recording = attempt(where, parsed_row, text)
            if isinstance(recording, Unreadable):
                yield recording
                continue
            segments = recording.get(keys["segments"])
            if not isinstance(segments, list):
                yield Unreadable(where, f"{where}: its '{keys['segments']}' are not a list", NO_SAMPLE)
                continue
            audio = attempt(where, self._recording, recording.get(keys["path"]), where)
            if isinstance(audio, Unreadable):
                yield audio
                continue
            facts = {key: value for key, value in recording.items() if key != keys["segments"]}
            for nth, segment in enumerate(segments, 1):
                yield attempt(
                    f"{where} segment {nth}", self._utterance, segment, audio, facts, keys, f"{where} segment {nth}"
                )

    def _recording(self, path: Any, where: str) -> AudioFile:
        audio = audio_ref(path, self.root, where)
        if not isinstance(audio, AudioFile):
            raise LeftOut(NO_AUDIO, "its path is not a file's")
        return audio

    def _utterance(
        self, segment: Any, audio: AudioFile, facts: Mapping[str, Any], keys: Mapping[str, str], where: str
    ) -> Utterance:
        if not isinstance(segment, dict):
            raise LeftOut(NO_SEGMENT, f"it is {kind_in_words(segment)}, not an object")
        if self.subset and self.subset not in (segment.get(keys["subsets"]) or ()):
            raise Filtered("other subset", f"it is in {shown(segment.get(keys['subsets']), 100)}")
        piece = _piece(audio, segment.get(keys["start"]), segment.get(keys["end"]))
        speaker = speaker_of(segment.get(keys["speaker"])) or speaker_of(facts.get(keys["speaker"]))
        name = speaker_of(segment.get(keys["id"])) or where
        return Utterance(name, piece, segment.get(keys["text"]), speaker, {**facts, **segment})


# ---------------------------------------------------------------------------------------------------------- TextGrid

_LARGEST_GRID = 64 << 20  # bytes
_GRID_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?!\S)')
_TAG = re.compile(r"<[^<>]*>")


@dataclass(frozen=True)
class Interval:
    """An interval of a tier from `start` to `end` in seconds; `number` from 1 within its tier."""

    tier: str
    number: int
    start: float
    end: float
    text: str


@dataclass(frozen=True)
class TextGridReader(UtteranceOptions):
    """TextGrids of meetings: a tier per speaker, named after the speaker, with intervals of speech.

    Intervals without text are ignored. Filters see `speaker` and `overlap`: the share of an interval, 0 to 1, in which
    others speak as well (text in angle brackets is not speech).

    Attributes:
        root: folder of the corpus.
        audio: path of the recording below `root`; `{list}` is the name of the TextGrid without extension, `{folder}`
            its folder, `{parent}` the folder above.
        files: globs of TextGrids below `root`.
        task, speaker_prompt, lower, join, channel, filters: see `UtteranceOptions`.
    """

    root: Place
    audio: str
    files: tuple[str, ...] = ("**/*.TextGrid",)

    def __post_init__(self) -> None:
        if unknown := sorted(set(columns_in(self.audio)) - {*PLACES}):
            raise UserError(f"{self.audio!r:.200} names {{{unknown[0]}}}, which is not one of {', '.join(PLACES)}")

    def parts(self) -> list[Part]:
        rules = hashlib.sha256(json.dumps([self.audio, self._rules.identity]).encode()).hexdigest()[:12]
        return file_parts(self.root, self.files, rules)

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        yield from self._rules.samples(self._utterances(PurePosixPath(str(part.where["path"]))))

    def _utterances(self, name: PurePosixPath) -> Iterator[Utterance | Unreadable]:
        audio = audio_ref(filled(self.audio, places_of(name)), self.root, str(name))
        intervals = [interval for interval in read_textgrid(self.root / name) if interval.text.strip()]
        for interval, overlap in zip(intervals, overlaps(intervals), strict=True):
            id = f"{name.stem}-{interval.tier}-{interval.number}"
            yield attempt(id, self._utterance, id, interval, overlap, audio, name.stem)

    def _utterance(self, id: str, interval: Interval, overlap: float, audio: Any, meeting: str) -> Utterance:
        piece = _piece(audio, interval.start, interval.end)
        return Utterance(id, piece, interval.text, f"{meeting}-{interval.tier}", {"overlap": overlap})


def overlaps(intervals: list[Interval]) -> list[float]:
    """For each interval, the share of it in which other tiers have speech."""
    start, end = (np.array([getattr(i, side) for i in intervals], np.float64) for side in ("start", "end"))
    tier = np.array([i.tier for i in intervals])
    speech = np.array([bool(_TAG.sub("", i.text).strip()) for i in intervals])
    shares = []
    for nth in range(len(intervals)):
        both = np.minimum(end, end[nth]) - np.maximum(start, start[nth])
        other = both[speech & (tier != tier[nth]) & (both > 0)].sum()
        shares.append(min(float(other / max(end[nth] - start[nth], 1e-9)), 1.0))
    return shares


def read_textgrid(path: Place) -> Iterator[Interval]:
    """Intervals of all tiers of a TextGrid in either of Praat's text forms, UTF-8 or UTF-16, including empty ones.

    As in Praat, only quoted strings and free-standing numbers are read; other text is decoration.

    Raises:
        UserError: it is not a TextGrid, or is damaged.
    """
    with path.open("rb") as file:
        data = file.read(_LARGEST_GRID + 1)
    if len(data) > _LARGEST_GRID:
        raise UserError(f"{path} is larger than {_LARGEST_GRID >> 20} MiB, too large for a TextGrid")
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is neither UTF-8 nor UTF-16 ({error.reason} at byte {error.start})") from None
    tokens = _Tokens(path, text)
    if [tokens.string(), tokens.string()] != ["ooTextFile", "TextGrid"]:
        raise UserError(f"{path} is not a TextGrid in Praat's text form")
    tokens.number(), tokens.number()  # its beginning and its end
    for _ in range(round(tokens.number())):
        kind, tier = tokens.string(), tokens.string()
        tokens.number(), tokens.number()
        for number in range(1, round(tokens.number()) + 1):
            start = tokens.number()
            end = tokens.number() if kind == "IntervalTier" else start
            content = tokens.string()
            if kind == "IntervalTier":
                yield Interval(tier, number, start, end, content)


class _Tokens:
    """Strings and numbers of a TextGrid, in order."""

    def __init__(self, path: Place, text: str):
        self._path, self._found = path, _GRID_TOKEN.finditer(text)

    def string(self) -> str:
        token = next(self._found, None)
        if token is None or token[1] is None:
            raise self._damaged(token, "a text in quotes")
        return token[1].replace('""', '"')

    def number(self) -> float:
        token = next(self._found, None)
        if token is None or token[2] is None or not math.isfinite(number := float(token[2])):  # 1e999 is infinite
            raise self._damaged(token, "a number")
        return number

    def _damaged(self, token: "re.Match[str] | None", wanted: str) -> UserError:
        place = "its end" if token is None else f"character {token.start()}"
        return UserError(f"{self._path} is damaged from {place} on: {wanted} should stand there")
