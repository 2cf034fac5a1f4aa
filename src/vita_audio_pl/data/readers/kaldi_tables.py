"""Kaldi's tables, a key and the rest on a line, sorted by the bytes of their keys: merged as they stream, in bounded memory.

A table that is not sorted is sorted in memory where it is small, and refused where it is not.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TypeAlias

from vita_audio_pl.data.readers.base import Stamp, Unreadable, stamp_of
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.places import Place
from vita_audio_pl.text.lines import LONGEST_LINE, open_text

NOT_UTF8, REPEATED = "not UTF-8", "repeated key"

Position: TypeAlias = tuple[int, int]
"""Byte where a line begins, and its number."""
Row: TypeAlias = tuple[bytes, str | Unreadable, Position]
"""Key, rest of the line or why it is unusable, and the position of the line."""

START: Position = (0, 1)
_UNKNOWN = -(1 << 40)  # as the number of a line, and of those that follow
_BUFFER = 1 << 16  # bytes
_SORTED_HERE = 64 << 20  # bytes of the largest table that is sorted in memory
_NEAR = 1000  # rows that are skipped before a binary search for a key
_BOM = b"\xef\xbb\xbf"
_BLANKS = b" \t\r\n"
_GAP = re.compile(rb"[ \t]+")


class Unsorted(Exception):
    """A table whose keys do not ascend; the message says where."""

    def __init__(self, table: "SortedTable", number: int, key: bytes, before: bytes):
        self.table = table
        super().__init__(f"{table.path} is not sorted: line {number} has the key {_shown(key)} after {_shown(before)}")

    def refuse_large(self) -> None:
        """Raise a `UserError` if the table is too large to be sorted in memory."""
        if self.table.path.stat().st_size > _SORTED_HERE:
            name = self.table.path.name
            raise UserError(
                f"{self}, and it is too large to be sorted here: sort it as Kaldi does, LC_ALL=C sort -o {name} {name}"
            )


@dataclass(frozen=True)
class SortedTable:
    """A table of a Kaldi directory.

    Attributes:
        path: path of the file.
        in_memory: the file is not sorted, so a sorted copy in memory is used.
    """

    path: Place
    in_memory: bool = field(default=False)

    def check(self) -> None:
        """Raise a `UserError` if the file cannot be opened, or is compressed or UTF-16."""
        open_text(self.path).close()

    def open(self) -> BinaryIO:
        if self.in_memory:
            return io.BytesIO(_sorted_copy(self.path, stamp_of(self.path))[0])
        path = self.path
        return path.open("rb", buffering=_BUFFER) if isinstance(path, Path) else path.open("rb")

    def rows(self, at: Position = START) -> Iterator[Row]:
        """The rows from a position on, one per key.

        Raises:
            Unsorted: the keys do not ascend.
        """
        offset, number = at
        held: Row | None = None
        with self.open() as file:
            file.seek(offset)
            while raw := file.readline(LONGEST_LINE + 1):
                here, size = (offset, number), len(raw)
                long = size > LONGEST_LINE and not raw.endswith(b"\n")
                while long and (rest := file.readline(LONGEST_LINE)):
                    size += len(rest)
                    if rest.endswith(b"\n"):
                        break
                offset, number = offset + size, number + 1
                key, mark, rest = raw.partition(b" ")
                if b"\t" in key or not key or not mark or key.startswith(_BOM):
                    key, rest = _parted(raw)
                    if not key:
                        continue
                if held is not None:
                    if key == held[0]:
                        held = (key, self._unusable(here, key, "comes a second time", REPEATED), held[2])
                        continue
                    if key < held[0]:
                        raise Unsorted(self, number - 1, key, held[0])
                    yield held
                value: str | Unreadable
                if long:
                    value = self._unusable(here, key, f"has a line longer than {LONGEST_LINE >> 20} MiB", NOT_UTF8)
                else:
                    try:
                        value = rest.strip(_BLANKS).decode()
                        key.isascii() or key.decode()
                    except UnicodeDecodeError:
                        value = self._unusable(here, key, "has a line that is not UTF-8", NOT_UTF8)
                held = (key, value, here)
        if held is not None:
            yield held

    def search(self, key: bytes) -> Position:
        """Position of the first row with a key of at least `key`; its line number is unknown."""
        with self.open() as file:
            low, high = 0, file.seek(0, io.SEEK_END)
            while low < high:
                middle = (low + high) // 2
                file.seek(max(middle - 1, 0))
                if middle:
                    file.readline()
                while (raw := file.readline()) and not _parted(raw)[0]:
                    pass
                if raw and _parted(raw)[0] < key:
                    low = file.tell()
                else:
                    high = middle
        return low, _UNKNOWN

    def _unusable(self, at: Position, key: bytes, problem: str, reason: str) -> Unreadable:
        where = f"{self.path}:{self._line(at)}" if at[1] > 0 else str(self.path)
        return Unreadable(where, f"{where}: the key {_shown(key)} {problem}", reason)

    def _line(self, at: Position) -> int:
        """Number of a line in the file itself."""
        return _sorted_copy(self.path, stamp_of(self.path))[1][at[1] - 1] if self.in_memory else at[1]


class Cursor:
    """Looks up keys in a table: ascending ones by streaming, others by a search.

    Args:
        table: None = an empty table.
        at: start position; earlier rows are only found by a search.
    """

    def __init__(self, table: SortedTable | None, at: Position = START):
        self._table, self._at = table, at
        self._rows = iter(()) if table is None else table.rows(at)
        self._row = next(self._rows, None)

    @property
    def at(self) -> Position:
        """Position of the next row."""
        return self._at if self._row is None else self._row[2]

    def get(self, key: bytes) -> str | Unreadable | None:
        """The row of a key that is not before the previous one; None if there is none."""
        for _ in self.before(key):
            pass
        row = self._row
        return row[1] if row is not None and row[0] == key else None

    def before(self, key: bytes | None) -> Iterator[Row]:
        """The skipped rows before a key, or the rest with None."""
        while (row := self._row) is not None and (key is None or row[0] < key):
            self._at = row[2]
            self._row = next(self._rows, None)
            yield row

    def find(self, key: bytes) -> str | Unreadable | None:
        """The row of any key."""
        row, passed = self._row, 0
        while row is not None and row[0] < key and passed < _NEAR:
            row = self._row = next(self._rows, None)
            passed += 1
        if self._table is not None and (row is None or row[0] > key or passed == _NEAR):
            self._rows = self._table.rows(self._table.search(key))
            self._row = next(self._rows, None)
        return self.get(key)

    def read_on(self) -> None:
        """Read the rest, to verify that the table is sorted."""
        for row in self._rows:
            self._row = row


def _parted(raw: bytes) -> tuple[bytes, bytes]:
    """Key and rest of a line, without the blanks between and around them."""
    # concatenated files have byte-order marks at the beginning of later lines, too
    fields = _GAP.split(raw.rstrip(b"\r\n").removeprefix(_BOM).strip(_BLANKS), maxsplit=1)
    return fields[0], fields[1] if len(fields) > 1 else b""


def _shown(key: bytes) -> str:
    return f"{key.decode('utf-8', 'backslashreplace')!r:.200}"


@lru_cache(maxsize=4)
def _sorted_copy(path: Place, stamp: Stamp | None) -> tuple[bytes, list[int]]:
    """The lines of a small table, sorted, with their line numbers in the file."""
    lines = path.read_bytes().split(b"\n")
    order = sorted((n for n, line in enumerate(lines) if _parted(line)[0]), key=lambda n: _parted(lines[n])[0])
    return b"".join(lines[n] + b"\n" for n in order), [n + 1 for n in order]
