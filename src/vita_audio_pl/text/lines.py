r"""Lines and fields of text files from any source.

Only `\n` ends a line, and only blanks and tabs separate fields. Python's own `str.splitlines` and `str.split` also cut
at form feeds, U+0085, U+2028 and no-break spaces, which occur in transcripts.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.storage.places import Place

LONGEST_LINE = 16 << 20
"""Longest line in bytes; a longer one is not loaded, since parsed JSON may take twenty times its size."""

_FOREIGN = {
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"\xff\xfe": "is UTF-16; save it as UTF-8",
    b"\xfe\xff": "is UTF-16; save it as UTF-8",
}


@dataclass(frozen=True)
class Line:
    """One line of a file.

    Attributes:
        number: line number, from 1.
        text: without line end and byte-order mark; empty if unreadable.
        problem: why it is unreadable, else empty.
    """

    number: int
    text: str
    problem: str = ""


def read_lines(path: Place) -> Iterator[Line]:
    """All lines of a UTF-8 file, including empty ones; a line that is not UTF-8 or too long has a `problem`.

    Raises:
        UserError: the file cannot be opened, or is compressed or UTF-16.
    """
    with open_text(path) as file:
        yield from numbered_lines(file)


def open_text(path: Place) -> BinaryIO:
    """The file, open for `numbered_lines`.

    Raises:
        UserError: it cannot be opened, or is compressed or UTF-16.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        if is_machine_fault(error):
            raise
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    start = file.read(2)
    file.seek(0)
    if start in _FOREIGN:
        file.close()
        raise UserError(f"{path} {_FOREIGN[start]}")
    return file


@dataclass(frozen=True)
class Block:
    """Consecutive lines of a file.

    Attributes:
        offset: byte offset of the first line.
        first: number of the first line.
        lines: number of lines.
        digest: SHA-256 of their bytes.
    """

    offset: int
    first: int
    lines: int
    digest: str


def line_blocks(path: Place, lines: int) -> Iterator[Block]:
    """Divide a file into blocks of `lines` lines, the last one with the rest.

    Raises:
        UserError: the file cannot be opened, or is compressed or UTF-16.
    """
    with open_text(path) as file:
        offset, first, count, digest = 0, 1, 0, hashlib.sha256()
        while piece := file.readline(_PIECE):
            digest.update(piece)
            # a buffered file, whose `peek` BinaryIO does not declare
            if not piece.endswith(b"\n") and len(piece) == _PIECE and file.peek(1):  # type: ignore[attr-defined]
                continue  # the line continues
            count += 1
            if count == lines:
                yield Block(offset, first, count, digest.hexdigest())
                offset, first, count, digest = file.tell(), first + count, 0, hashlib.sha256()
        if count:
            yield Block(offset, first, count, digest.hexdigest())


_PIECE = 1 << 20


def read_block(path: Place, offset: int, first: int, lines: int) -> Iterator[Line]:
    """The lines of a block of `line_blocks`."""
    with path.open("rb") as file:
        file.seek(offset)
        yield from islice(numbered_lines(file, first), lines)


def numbered_lines(file: BinaryIO, first: int = 1) -> Iterator[Line]:
    """Lines from the present position of `file`, numbered from `first`."""
    number = first
    while raw := file.readline(LONGEST_LINE + 1):
        if len(raw) > LONGEST_LINE and not raw.endswith(b"\n"):
            while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield Line(number, "", f"the line is longer than {LONGEST_LINE >> 20} MiB")
        else:
            try:
                yield Line(number, decode_line(raw))
            except UnicodeDecodeError as error:
                yield Line(number, "", f"the line is not UTF-8 (byte {error.start + 1} is 0x{raw[error.start]:02x})")
        number += 1


def decode_line(raw: bytes) -> str:
    r"""Text of a line, without `\n`, the `\r` before it (also `\r\r\n`), and a leading byte-order mark.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    # concatenated files have byte-order marks at the beginning of later lines, too
    return raw.decode("utf-8").rstrip("\r\n").removeprefix("\ufeff")


def split_fields(line: str, most: int | None = None) -> list[str]:
    """Fields of a line; the last of `most` keeps its inner blanks. An empty line has none."""
    bare = line.strip(" \t\r\n")
    return re.split(r"[ \t]+", bare, maxsplit=0 if most is None else most - 1) if bare else []


def load_json(text: str) -> Any:
    """The value in a line of JSON.

    Raises:
        ValueError: it is not JSON, has a duplicate key in an object, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        if "sys.set_int_max_str_digits" in str(error):  # Python's advice is none for who has a corpus
            raise ValueError("a number of thousands of digits") from None
        raise


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, content in pairs:
        if key in value:
            raise ValueError(f"the key {key!r:.100} comes twice in one object")
        value[key] = content
    return value
