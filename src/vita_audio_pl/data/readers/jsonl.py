"""Our own format: JSONL files of `{"messages": [...], "audios": [path, ...], "id": name}`."""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vita_audio_pl.data.readers.base import (
    NO_AUDIO,
    READERS,
    AudioFile,
    KnownCodes,
    LeftOut,
    Part,
    RawSample,
    Unreadable,
    attempt,
    audio_ref,
    broken_part,
    content_of,
    file_identities,
    parts_matching,
)
from vita_audio_pl.data.readers.filters import NONE, Filters
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.places import Place, relative
from vita_audio_pl.text import Conversation
from vita_audio_pl.text.lines import Line, line_blocks, load_json, read_block

PREFERENCE = "preference"
"""Task of a source whose samples are pairs of answers."""
CODES = "codes:"
_MOST_DIGITS = 6


@dataclass(frozen=True)
class JsonlReader:
    """Conversations, one per line; the message formats of OpenAI and ShareGPT are also accepted.

    Attributes:
        root: folder that relative audio paths start from.
        files: globs below `root`.
        lines_per_part: lines per task.
        channel: channel of the audio; None averages all.
        held_out: share of held-out lines, chosen by `share_of`; 0 holds none out.
        dev: read the held-out lines instead of the others.
        task: of the source; `preference` reads pairs of answers.
        filters: which conversations to use, and normalisation of their text.
        watch_audio: a recording that changes under its name changes its part; all recordings are read to find out.
    """

    root: Place
    files: tuple[str, ...] = ("*.jsonl",)
    lines_per_part: int = 2000
    channel: int | None = None
    held_out: float = 0.0
    dev: bool = False
    task: str = ""
    filters: Filters = NONE
    watch_audio: bool = False

    def parts(self) -> list[Part]:
        paths, parts = parts_matching(self.root, self.files)
        rules = ("" if self.channel is None else f" channel {self.channel}") + self.filters.identity
        rules += f" {'dev' if self.dev else 'not dev'} {self.held_out!r}" if self.held_out or self.dev else ""
        rules += " pairs" if self.task == PREFERENCE else ""
        for path in paths:
            try:
                for block in line_blocks(path, self.lines_per_part):
                    where: dict[str, str | int] = {
                        "path": relative(path, self.root).as_posix(),
                        "offset": block.offset,
                        "line": block.first,
                        "lines": block.lines,
                    }
                    identity = block.digest + rules + (self._recordings(where) if self.watch_audio else "")
                    parts.append(Part(f"{path.name}:{block.first}", identity, where, content=block.digest))
            except UserError as error:
                parts.append(broken_part(path.name, file_identities([path], self.root)[0], error))
        return parts

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        path = self.root / str(part.where["path"])
        for line in read_block(path, int(part.where["offset"]), int(part.where["line"]), int(part.where["lines"])):
            here = f"{path}:{line.number}"
            if line.problem:
                yield Unreadable(here, f"{here}: {line.problem}")
            elif line.text.strip() and (share_of(line.text) < self.held_out) == self.dev:
                yield attempt(here, self._sample, line, here)

    def _recordings(self, place: Mapping[str, str | int]) -> str:
        """Changes when a recording of a part does; of recordings in a store, which are not read for it, never."""
        found = (sample for sample in self.read(Part("", "", dict(place))) if isinstance(sample, RawSample))
        files = [audio.path for sample in found for audio in sample.audios if isinstance(audio, AudioFile)]
        with ThreadPoolExecutor(READERS) as pool:
            contents = list(
                pool.map(partial(content_of, whole=True), (path for path in files if isinstance(path, Path)))
            )
        return f" audio {hashlib.sha256(repr(contents).encode()).hexdigest()[:32]}" if contents else ""

    def _sample(self, line: Line, where: str) -> RawSample:
        read = Conversation.pair_from_json if self.task == PREFERENCE else Conversation.from_json
        conversation = read(line.text, where)
        facts = load_json(line.text) if self.filters.columns else {}
        audios = tuple(
            known_codes(value, f"{where} audio {number}")
            if value.startswith(CODES)
            else audio_ref(value, self.root, f"{where} audio {number}", inside=False, channel=self.channel)
            for number, value in enumerate(conversation.audios, 1)
        )
        return self.filters.chat(RawSample(replace(conversation, audios=tuple(map(str, audios))), audios), facts)


def known_codes(value: str, where: str) -> KnownCodes:
    """Audio that a line gives as `codes:12,7,500`.

    Raises:
        LeftOut: these are no codes.
    """
    numbers = value.removeprefix(CODES).split(",")
    if not all(number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS for number in numbers):
        raise LeftOut(
            NO_AUDIO, f"{where}: after '{CODES}' stand whole numbers with commas between them, as {CODES}12,7,500"
        )
    return KnownCodes(where, tuple(map(int, numbers)))


def share_of(line: str) -> float:
    """A number from 0 to 1 that is drawn from a line's text: which side of a split it is on does not change with others."""
    return int.from_bytes(hashlib.blake2b(line.strip().encode(), digest_size=6).digest()) / 2**48
