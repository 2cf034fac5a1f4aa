"""Samples that prepared sources have in common, and those that one has twice: found by their audio, or by text and length.

The same samples of a recording become the same codes, so the codes of an audio stand for it. A text is compared by its
letters and digits; with audio in the sample, its length must agree, too.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from rich.table import Table

from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.errors import UserError
from vita_audio_pl.text import AudioCodes, TextIds, TextTokenizer, Turn

SAME_AUDIO, SAME_TEXT = "the same audio", "the same text, as long"
LEAST_SECONDS = 1.0
"""Audio that is shorter is not compared: silence and single words are the same by chance."""
LEAST_LETTERS = 20
"""Text that is shorter is not compared."""
LENGTH_TOLERANCE = 0.05
"""By this share the codes of two samples with the same text may differ in number."""

_MOST_TWINS = 100  # samples of one print that are looked at: a sentence that comes a million times is compared to these


@dataclass(frozen=True, eq=False)
class Prints:
    """What is compared of a source.

    Attributes:
        source: the source.
        audio: `(audios,) uint64` XXH3-64 of the codes of each audio that is long enough.
        audio_of: `(audios,) int64` sample that has it.
        text: `(samples,) uint64` XXH3-64 of the text; 0 where it is too short.
        codes: `(samples,) int64` codes in all audios of the sample.
    """

    source: PreparedSource
    audio: np.ndarray
    audio_of: np.ndarray
    text: np.ndarray
    codes: np.ndarray


@dataclass(frozen=True)
class Overlap:
    """A sample that another source has, too, or the same source before it."""

    number: int
    id: str
    other_source: str
    other_id: str
    kind: str

    def __str__(self) -> str:
        return f"{self.id}: {self.kind} as {self.other_id} of '{self.other_source}'"


def prints_of(source: PreparedSource, tokenizer: TextTokenizer) -> Prints:
    """Reads a source from end to end, but for what is quarantined.

    Raises:
        UserError: a sample is damaged; `data lint` names all of them.
    """
    least = LEAST_SECONDS * float(source.manifest.codec.get("codes_per_second", 0))
    audio: list[int] = []
    audio_of: list[int] = []
    text, codes = np.zeros(len(source), np.uint64), np.zeros(len(source), np.int64)
    for number in range(len(source)):
        if number in source.quarantined:
            continue
        turns = source.read(number).turns
        audios = [segment.codes for turn in turns for segment in turn.segments if isinstance(segment, AudioCodes)]
        codes[number] = sum(map(len, audios))
        for of_audio in audios:
            if len(of_audio) >= least:
                audio.append(xxhash.xxh3_64_intdigest(np.asarray(of_audio, "<u2").tobytes()))
                audio_of.append(number)
        letters = _letters(turns, bool(audios), tokenizer)
        if len(letters) >= LEAST_LETTERS:
            text[number] = max(xxhash.xxh3_64_intdigest(letters.encode()), 1)
    return Prints(source, np.array(audio, np.uint64), np.array(audio_of, np.int64), text, codes)


def _letters(turns: Sequence[Turn], has_audio: bool, tokenizer: TextTokenizer) -> str:
    """Letters and digits of a sample's text; of one with audio, of its answers alone: requests are the same everywhere."""
    wanted = [turn for turn in turns if not has_audio or turn.role == "assistant"]
    ids = [segment.ids.tolist() for turn in wanted for segment in turn.segments if isinstance(segment, TextIds)]
    text = unicodedata.normalize("NFKC", "".join(tokenizer.decode(piece) for piece in ids)).casefold()
    return "".join(letter for letter in text if letter.isalnum())


def find_overlap(mine: Prints, other: Prints) -> Iterator[Overlap]:
    """The samples of a source that `other` has, each once, in order; of a source with itself, those that came before.

    Raises:
        UserError: both have audio, of different codecs.
    """
    codecs = [prints.source.manifest.codec for prints in (mine, other)]
    if len({codec["fingerprint"] for codec in codecs if codec}) > 1:
        raise UserError(
            f"'{mine.source.name}' and '{other.source.name}' were encoded by different codecs, so their audio cannot be "
            "compared: prepare both with the same"
        )
    found: dict[int, tuple[int, str]] = {}
    same = mine.source is other.source
    for number, twins in _matches((mine.audio, mine.audio_of), (other.audio, other.audio_of), same):
        found.setdefault(number, (twins[0], SAME_AUDIO))
    for number, twins in _matches(_texts(mine), _texts(other), same):
        if as_long := [twin for twin in twins if _as_long(int(mine.codes[number]), int(other.codes[twin]))]:
            found.setdefault(number, (as_long[0], SAME_TEXT))
    for number, (twin, kind) in sorted(found.items()):
        yield Overlap(number, mine.source.read(number).id, other.source.name, other.source.read(twin).id, kind)


def _texts(prints: Prints) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.flatnonzero(prints.text)
    return prints.text[numbers], numbers


def _as_long(codes: int, other: int) -> bool:
    return abs(codes - other) <= LENGTH_TOLERANCE * max(codes, other)


def _matches(
    mine: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], same: bool
) -> Iterator[tuple[int, list[int]]]:
    """Samples and those of `other` with the same print; of a source with itself, the ones before them.

    Args:
        mine, other: `(prints,) uint64` and the sample of each.
    """
    shared = np.intersect1d(mine[0], other[0])
    twins: dict[int, list[int]] = {}
    chosen = np.isin(other[0], shared)
    for value, number in zip(other[0][chosen].tolist(), other[1][chosen].tolist(), strict=True):
        known = twins.setdefault(value, [])
        if len(known) < _MOST_TWINS:
            known.append(number)
    chosen = np.isin(mine[0], shared)
    for value, number in zip(mine[0][chosen].tolist(), mine[1][chosen].tolist(), strict=True):
        if before := [twin for twin in twins[value] if not same or twin < number]:
            yield number, before


def overlap_table(found: Sequence[tuple[str, str, Sequence[Overlap]]]) -> Table:
    """How much of each source another has, with an example. `found`: source, other source, samples."""
    table = Table(title_justify="left")
    for column in ("source", "also in", "how", "samples", "such as"):
        table.add_column(column, justify="right" if column == "samples" else "left")
    for source, other, overlaps in found:
        for kind in (SAME_AUDIO, SAME_TEXT):
            of_kind = [overlap for overlap in overlaps if overlap.kind == kind]
            example = f"{of_kind[0].id} and {of_kind[0].other_id}" if of_kind else ""
            table.add_row(source, "itself" if source == other else other, kind, f"{len(of_kind):,}", example)
    return table
