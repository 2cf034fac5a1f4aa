"""The index of a source: 24 bytes per sample, enough to compute exact row lengths for any interval ratio.

File: 64 bytes of head (`VAPLIDX1`, u64 samples, u64 overflow rows, u32 CRC-32 of all that follows), then one contiguous
column per field, then the overflow table of conversations with several spoken answers.
"""

import os
import stat
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vita_audio_pl.data.shape import ASSISTANT, SampleShape
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.files import AtomicFile, atomic_write
from vita_audio_pl.storage.open_files import open_files, read_whole
from vita_audio_pl.storage.places import Place
from vita_audio_pl.storage.remote import RemotePath
from vita_audio_pl.storage.remote_file import Unreachable
from vita_audio_pl.text import LengthRule, Lengths

MAGIC = b"VAPLIDX1"
_HEAD = struct.Struct("<8sQQI36x")

COLUMNS = np.dtype(
    [
        ("offset", "<u4"),  # offset of the sample in its shard, in units of four bytes
        ("crc", "<u4"),  # CRC-32 of its bytes in the shard
        (
            "prompt_text",
            "<u4",
        ),  # tokens independent of the ratio: template, prompt text, both markers of each prompt audio
        ("shard", "<u2"),
        ("flags", "<u2"),
        ("prompt_codes", "<u2"),  # codes outside assistant turns
        ("prompt_frames", "<u2"),  # encoder placeholders that replace them with continuous input
        ("answer_text", "<u2"),  # text tokens of the answers; with OVERFLOW, low half of the first overflow row
        ("answer_codes", "<u2"),  # codes of the spoken answer; with OVERFLOW, high half of the first overflow row
    ]
)
OVERFLOW_ROWS = np.dtype([("text", "<u4"), ("codes", "<u4"), ("sample", "<u4")])
OFFSET_UNIT = 4
MOST_BYTES = OFFSET_UNIT << 32
"""Largest shard, bytes: the range of the offsets."""

OVERFLOW = 1  # answer counts are in the overflow table: several spoken answers, or more than 65,535 text tokens
ONE_ANSWER = 2  # exactly one assistant turn, at the end

_U16 = 2**16 - 1
_BLOCK = 16 << 20  # bytes per read when the whole index is read


@dataclass(frozen=True)
class IndexEntry:
    """Index entry of one sample."""

    shard: int
    offset: int
    crc: int
    shape: SampleShape


def write_index(path: Place, entries: Sequence[IndexEntry]) -> int:
    """Write the index file atomically; returns the CRC-32 of its contents.

    Raises:
        UserError: a sample is too large for the index (prompt of more than 65,535 codes, shard above 16 GiB).
    """
    columns = {name: np.zeros(len(entries), COLUMNS[name]) for name in COLUMNS.names or ()}
    overflow: list[tuple[int, int, int]] = []
    for i, entry in enumerate(entries):
        values = check_entry(entry)
        if values["flags"] & OVERFLOW:
            values |= {"answer_text": len(overflow) & _U16, "answer_codes": len(overflow) >> 16}
            overflow += [(*answer, i) for answer in entry.shape.answers]
        for name, value in values.items():
            columns[name][i] = value
    return write_columns(path, columns, np.array(overflow, dtype=OVERFLOW_ROWS))


def check_entry(entry: IndexEntry) -> dict[str, int]:
    """A sample's index entry by column; with OVERFLOW the answers go into the overflow table.

    Raises:
        UserError: it does not fit the index.
    """
    shape = entry.shape
    text, codes = shape.answers[0] if len(shape.answers) == 1 else (0, 0)
    overflows = len(shape.answers) > 1 or text > _U16 or codes > _U16
    values = {
        "offset": entry.offset // OFFSET_UNIT,
        "crc": entry.crc,
        "prompt_text": shape.prompt_text,
        "shard": entry.shard,
        "flags": (ONE_ANSWER if shape.one_answer else 0) | (OVERFLOW if overflows else 0),
        "prompt_codes": shape.prompt_codes,
        "prompt_frames": shape.prompt_frames,
        "answer_text": 0 if overflows else text,
        "answer_codes": 0 if overflows else codes,
    }
    for name, value in values.items():
        if value > np.iinfo(COLUMNS[name]).max:
            raise UserError(f"it has {name}={value}, more than the index can hold; cut it shorter")
    return values


def write_columns(path: Place, columns: Mapping[str, np.ndarray], overflow: np.ndarray) -> int:
    """Write an index from its columns `(samples,)` and its overflow rows; returns the CRC-32 of its contents."""
    n = len(columns["offset"])
    bodies = [columns[name].astype(COLUMNS[name], copy=False).tobytes() for name in COLUMNS.names or ()]
    body = b"".join(data + b"\0" * (-len(data) % 64) for data in bodies) + overflow.tobytes()
    crc = zlib.crc32(body)
    atomic_write(path, _HEAD.pack(MAGIC, n, len(overflow), crc) + body)
    return crc


@dataclass(frozen=True)
class IndexPiece:
    """Samples to copy from one index into another.

    Attributes:
        path: the index to copy from.
        samples: sample numbers; None = all.
        shard: number of their shard in the new index.
        moved: bytes to add to their offsets in that shard.
    """

    path: Path
    samples: range | None = None
    shard: int = 0
    moved: int = 0

    def opened(self) -> tuple["Index", range, range]:
        """The index, and the samples and overflow rows to copy from it."""
        index = Index(self.path)
        if self.samples is None:
            return index, range(len(index)), range(index.n_overflow)
        rows = np.searchsorted(index.overflow["sample"], (self.samples.start, self.samples.stop)).tolist()
        return index, self.samples, range(*rows)


def merge_indexes(pieces: Sequence[IndexPiece], out: Place) -> int:
    """Concatenate pieces of indexes into one; returns the CRC-32 of its contents.

    Raises:
        UserError: an index is damaged, or there are more than 65,535 shards.
    """
    if (shards := max((piece.shard for piece in pieces), default=0) + 1) > _U16:
        raise UserError(f"{out}: {shards} shards are more than an index can number; make them larger")
    for path in dict.fromkeys(piece.path for piece in pieces):
        if not Index(path).intact():
            raise UserError(f"{path} is damaged: its contents do not match its checksum; delete it and prepare again")
    sizes = [(len(samples), len(rows)) for _, samples, rows in (piece.opened() for piece in pieces)]
    samples, overflow = np.cumsum([(0, 0), *sizes], axis=0).T.tolist()
    crc = 0
    with AtomicFile(out) as whole:
        file = whole.file
        file.write(bytes(_HEAD.size))
        for name in COLUMNS.names or ():
            columns = (_moved(piece, name, overflow[n]) for n, piece in enumerate(pieces))
            size = 0
            for data in (column.tobytes() for column in columns):
                crc = zlib.crc32(data, crc)
                size += file.write(data)
            rest = b"\0" * (-size % 64)
            crc = zlib.crc32(rest, crc)
            file.write(rest)
        for n, piece in enumerate(pieces):
            index, taken, wanted = piece.opened()
            rows = index.overflow[wanted.start : wanted.stop].copy()
            rows["sample"] = rows["sample"].astype(np.int64) + (samples[n] - taken.start)
            crc = zlib.crc32(rows.tobytes(), crc)
            file.write(rows.tobytes())
        file.seek(0)
        file.write(_HEAD.pack(MAGIC, samples[-1], overflow[-1], crc))
        whole.finish()
    return crc


def _moved(piece: IndexPiece, name: str, overflow: int) -> np.ndarray:
    """A column of a piece as it is written to the new index, where the piece's overflow rows start at `overflow`."""
    index, samples, rows = piece.opened()
    part = slice(samples.start, samples.stop)
    if name == "shard":
        return np.full(len(samples), piece.shard, COLUMNS[name])
    column = index.part(name, part)
    if name == "offset":
        moved: np.ndarray = (column.astype(np.int64) + piece.moved // OFFSET_UNIT).astype(column.dtype)
        return moved
    if name not in ("answer_text", "answer_codes") or not rows:
        return column
    several = np.flatnonzero(index.part("flags", part) & OVERFLOW)
    low, high = (index.part(half, part)[several].astype(np.int64) for half in ("answer_text", "answer_codes"))
    first = (low | high << 16) - rows.start + overflow
    column = column.copy()
    column[several] = first & _U16 if name == "answer_text" else first >> 16
    return column


class Index:
    """An index file, read piecewise: with a memory map, truncating the file while it is in use would kill the process.

    Raises:
        UserError: the file is missing, not an index, or truncated; also raised by the methods that read.
    """

    def __init__(self, path: Place):
        self.path = path
        self._file = path if isinstance(path, RemotePath) else os.path.abspath(path)
        open_files.forget_file(self._file)
        try:
            found = path.stat()
            if isinstance(found, os.stat_result) and not stat.S_ISREG(found.st_mode):
                raise ValueError("it is not a regular file")
            magic, self.n, self.n_overflow, self.crc = _HEAD.unpack(open_files.read(self._file, 0, _HEAD.size))
        except (OSError, ValueError, struct.error) as error:
            if isinstance(error, Unreachable):
                raise
            raise UserError(f"{path} cannot be read as an index ({error}); prepare the source again") from error
        self._starts: dict[str, int] = {}
        at = _HEAD.size
        for name in COLUMNS.names or ():
            self._starts[name] = at
            at += -(-self.n * COLUMNS[name].itemsize // 64) * 64
        self._overflow_start, self._size = at, at + self.n_overflow * OVERFLOW_ROWS.itemsize
        if magic != MAGIC or found.st_size != self._size:
            raise UserError(
                f"{path} is not a complete index ({found.st_size} bytes, {self._size} expected); prepare it again"
            )

    def __len__(self) -> int:
        return int(self.n)

    def __getitem__(self, column: str) -> np.ndarray:
        """A whole column, `(samples,)`."""
        return self.part(column, slice(None))

    def part(self, column: str, samples: np.ndarray | slice) -> np.ndarray:
        """A column for some samples; values between them in the file are read as well."""
        if isinstance(samples, slice):
            first, last, step = samples.indices(len(self))
            values = self._column(column, first, max(first, last))
            chosen: np.ndarray | slice = slice(None, None, step)
        elif len(samples):
            first = int(samples.min())
            values, chosen = self._column(column, first, int(samples.max()) + 1), samples - first
        else:
            values, chosen = np.empty(0, COLUMNS[column]), samples
        found: np.ndarray = values[chosen]
        return found

    def value(self, column: str, sample: int) -> int:
        """A column's value for one sample."""
        if not 0 <= sample < self.n:
            raise IndexError(f"{self.path} has {self.n} samples, not {sample}")
        size = COLUMNS[column].itemsize
        return int.from_bytes(self._read(self._starts[column] + sample * size, size), "little")

    @cached_property
    def overflow(self) -> np.ndarray:
        """The overflow table, `(rows,)` of `OVERFLOW_ROWS`."""
        return np.frombuffer(self._read(self._overflow_start, self._size - self._overflow_start), OVERFLOW_ROWS)

    def _column(self, name: str, first: int, last: int) -> np.ndarray:
        if not 0 <= first <= last <= self.n:
            raise IndexError(f"{self.path} has {self.n} samples, not {first} to {last}")
        dtype = COLUMNS[name]
        return np.frombuffer(
            self._read(self._starts[name] + first * dtype.itemsize, (last - first) * dtype.itemsize), dtype
        )

    def _read(self, start: int, size: int) -> bytes:
        return read_whole(self._file, start, size, "copy or prepare the source again, and rerun the command")

    def measure(self, rule: LengthRule, continuous: bool, samples: np.ndarray | slice = slice(None)) -> Lengths:
        """Exact row lengths and label counts, `(samples,)` each, computed from the index alone.

        Args:
            rule: the renderer's length rule, with its interval ratio and lead-in.
            continuous: prompt audio enters as encoder states instead of codes.
            samples: sample numbers; all by default.
        """
        prompt_audio = self.part("prompt_frames" if continuous else "prompt_codes", samples)
        prompt = self.part("prompt_text", samples) + prompt_audio.astype(np.int64)
        text, codes = self.part("answer_text", samples), self.part("answer_codes", samples)
        overflows = self.part("flags", samples) & OVERFLOW if self.n_overflow else np.zeros(0, np.uint16)
        several = np.flatnonzero(overflows)
        if not len(several):
            answers = _answers(rule, text, codes)
            return Lengths(answers.tokens + prompt, answers.text_labels, answers.audio_labels)
        answers = _answers(rule, np.where(overflows, 0, text), codes)
        first = text[several].astype(np.int64) | codes[several].astype(np.int64) << 16
        owners = self.overflow["sample"]
        count = np.searchsorted(owners, owners[first], "right") - first
        starts = np.cumsum(count) - count
        rows = np.repeat(first - starts, count) + np.arange(count.sum())
        sums = _answers(rule, self.overflow["text"][rows], self.overflow["codes"][rows]).per_sample(starts)
        for name, column in vars(sums).items():
            getattr(answers, name)[several] = column
        return Lengths(answers.tokens + prompt, answers.text_labels, answers.audio_labels)

    def intact(self) -> bool:
        """Whether the contents match the checksum in the header; reads the whole file."""
        crc = 0
        for start in range(_HEAD.size, self._size, _BLOCK):
            crc = zlib.crc32(self._read(start, min(_BLOCK, self._size - start)), crc)
        return crc == int(self.crc)


def _answers(rule: LengthRule, text: np.ndarray, codes: np.ndarray) -> Lengths:
    none = np.zeros(1, np.int64)
    return rule.of_turns(np.full(1, ASSISTANT), text, codes, none)
