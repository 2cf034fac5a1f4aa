"""Rows of tables in files: parquet, JSON, JSONL, CSV and TSV, divided into pieces and read row by row."""

import csv
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, TypeAlias

from vita_audio_pl.data.readers.base import LeftOut, Stamp, Unreadable, attempt, stamp_of
from vita_audio_pl.errors import UserError, is_machine_fault, kind_in_words
from vita_audio_pl.storage.places import Place
from vita_audio_pl.text.json_lists import ElementBlock, element_blocks, read_elements
from vita_audio_pl.text.lines import LONGEST_LINE, Line, line_blocks, load_json, numbered_lines, open_text, read_block

Row: TypeAlias = Mapping[str, Any]
Piece: TypeAlias = dict[str, str | int]
"""Location of a piece of a file."""

_MOST_LINES, _LONGEST_RECORD = 200, 1 << 20  # largest CSV record in bytes; a larger one has an unclosed quote

csv.field_size_limit(LONGEST_LINE)


def pieces(path: Place, rows: int) -> Iterator[tuple[int, Piece]]:
    """Divide the file into pieces of `rows` rows: index of the first row of each, from 0, and its location.

    Raises:
        UserError: the file cannot be read.
    """
    if path.suffix == ".csv":
        yield from _csv_pieces(path, rows)
    elif path.suffix == ".parquet":
        yield from _parquet_pieces(path, rows)
    elif path.suffix == ".json" and not _is_lines(path):
        for part in element_blocks(path, rows):
            yield part.first, vars(part)
    else:
        for block in line_blocks(path, rows):
            yield block.first - 1, {"offset": block.offset, "line": block.first, "lines": block.lines}


def rows(path: Place, place: Piece, columns: Collection[str]) -> Iterator[tuple[str, Row | Unreadable]]:
    """The rows of a piece with their location for messages; of parquet only the requested columns are read.

    Raises:
        UserError: the file is damaged from here on.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, int(place["first"]), int(place["count"]), columns)
    elif path.suffix == ".json" and "lines" not in place:
        block = ElementBlock(int(place["first"]), int(place["count"]), int(place["offset"]))
        for number, text in enumerate(read_elements(path, block), block.first + 1):
            where = f"{path}:{number}"
            yield where, attempt(where, parsed_row, text)
    elif path.suffix == ".csv":
        yield from _csv_rows(path, place)
    else:
        names = _header(path, stamp_of(path)) if path.suffix == ".tsv" else None
        for line in read_block(path, int(place["offset"]), int(place["line"]), int(place["lines"])):
            where = f"{path}:{line.number}"
            if line.problem:
                yield where, Unreadable(where, f"{where}: {line.problem}")
            elif names is not None and line.number > 1 and line.text:
                yield where, attempt(where, _named, names, _tsv_cells(line.text))
            elif names is None and line.text.strip():
                yield where, attempt(where, parsed_row, line.text)


def _is_lines(path: Place) -> bool:
    """Whether a .json file has an object per line, as in some data sets."""
    with open_text(path) as file:
        first = next(numbered_lines(file), Line(1, ""))
    return (
        not first.problem
        and first.text.startswith("{")
        and not isinstance(attempt("", parsed_row, first.text), Unreadable)
    )


def _object(row: Any) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"a row must be an object, not {kind_in_words(row)}")
    return row


def parsed_row(text: str) -> Row:
    """The object in a line or in an element of a list.

    Raises:
        UserError: it is not JSON, or not an object.
    """
    try:
        return _object(load_json(text))
    except ValueError as error:
        raise UserError(f"not JSON ({error})") from None


# ------------------------------------------------------------------------------------------------------ CSV and TSV


def _named(names: list[str], cells: list[str]) -> Row:
    if len(cells) != len(names):
        raise UserError(f"it has {len(cells)} cells for {len(names)} columns")
    return dict(zip(names, cells, strict=True))


def _tsv_cells(text: str) -> list[str]:
    """Cells between tabs. Quotes are ordinary characters, except around a cell that needs them."""
    cells = text.split("\t")
    for number, cell in enumerate(cells):
        inner = cell[1:-1]
        if len(cell) > 1 and cell[0] == cell[-1] == '"' and '""' in inner and '"' not in inner.replace('""', ""):
            cells[number] = inner.replace('""', '"')
    return cells


@dataclass(frozen=True)
class _Record:
    """A CSV record: number of its first line, its cells or what is wrong, and the position after it."""

    number: int
    cells: list[str]
    problem: str
    end: int


def _records(file: BinaryIO, first: int = 1) -> Iterator[_Record]:
    """Records from the present position of `file`. After an unreadable one, the next line begins another."""
    ahead: deque[tuple[Line, int]] = deque()
    lines = ((line, file.tell()) for line in numbered_lines(file, first))
    while head := ahead.popleft() if ahead else next(lines, None):
        line, end = head
        text, taken = line.text, 0
        cells, problem = ([], line.problem) if line.problem else _csv_cells(text)
        while problem == _OPEN_QUOTE and taken < _MOST_LINES and len(text) < _LONGEST_RECORD:
            if taken == len(ahead):
                if (more := next(lines, None)) is None:
                    break
                ahead.append(more)
            if ahead[taken][0].problem:
                break
            text = f"{text}\n{ahead[taken][0].text}"
            taken += 1
            cells, problem = _csv_cells(text)
        if problem:
            yield _Record(line.number, [], problem, end)
            continue
        for _ in range(taken):
            end = ahead.popleft()[1]
        yield _Record(line.number, cells, "", end)


_OPEN_QUOTE = "a quote in it is never closed"


def _csv_cells(text: str) -> tuple[list[str], str]:
    """Cells of a record, or what is wrong with it."""
    try:
        return next(csv.reader([text], strict=True), []), ""
    except csv.Error as error:
        return [], _OPEN_QUOTE if "unexpected end of data" in str(error) else f"not CSV ({error})"


@lru_cache(maxsize=16)
def _header(path: Place, stamp: Stamp | None) -> list[str]:
    """Names of the columns of a CSV or TSV file.

    Raises:
        UserError: there are none, or a name is duplicated.
    """
    with open_text(path) as file:
        if path.suffix == ".csv":
            record = next(_records(file), _Record(1, [], "it is empty", 0))
            names, problem = record.cells, record.problem
        else:
            line = next(numbered_lines(file), Line(1, "", "it is empty"))
            names, problem = _tsv_cells(line.text), line.problem
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if problem or not names or twice is not None:
        problem = problem or (f"the column {twice!r:.100} comes twice" if twice else "its first line names no columns")
        raise UserError(f"{path} cannot be read as a table: {problem}")
    return names


def _csv_pieces(path: Place, rows: int) -> Iterator[tuple[int, Piece]]:
    _header(path, stamp_of(path))
    with open_text(path) as file:
        records = _records(file)
        head = next(records)
        offset, line, first, count = head.end, None, 0, 0
        for record in records:
            line = line or record.number
            count += 1
            if count == rows:
                yield first, {"offset": offset, "line": line, "end": record.end}
                offset, line, first, count = record.end, None, first + count, 0
            end = record.end
        if count and line is not None:
            yield first, {"offset": offset, "line": line, "end": end}


def _csv_rows(path: Place, place: Piece) -> Iterator[tuple[str, Row | Unreadable]]:
    names = _header(path, stamp_of(path))
    with path.open("rb") as file:
        file.seek(int(place["offset"]))
        for record in _records(file, int(place["line"])):
            where = f"{path}:{record.number}"
            if record.problem:
                yield where, Unreadable(where, f"{where}: {record.problem}")
            elif record.cells:
                yield where, attempt(where, _named, names, record.cells)
            if record.end >= int(place["end"]):
                return


# ---------------------------------------------------------------------------------------------------------- parquet


@contextmanager
def _parquet(path: Place) -> Iterator[Any]:
    """The open file; an error while reading says that it is damaged."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("reading parquet files needs pyarrow: pip install 'vita-audio-pl[corpora]'") from error
    try:
        with path.open("rb") as raw, parquet.ParquetFile(raw) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if is_machine_fault(error):
            raise
        raise UserError(f"{path} cannot be read as parquet: {' '.join(str(error).split())[:300]}") from None


def _parquet_pieces(path: Place, rows: int) -> Iterator[tuple[int, Piece]]:
    """Pieces of whole row groups with at least `rows` rows together: a group is read from its start, so none is cut."""
    with _parquet(path) as file:
        first, count, groups = 0, 0, file.metadata.num_row_groups
        for group in range(groups):
            count += int(file.metadata.row_group(group).num_rows)
            ahead = int(file.metadata.row_group(group + 1).num_rows) if group + 1 < groups else rows
            if count and count + ahead > rows:
                yield first, {"first": first, "count": count}
                first, count = first + count, 0
        if count or not first:
            yield first, {"first": first, "count": count}


def _parquet_rows(
    path: Place, first: int, count: int, columns: Collection[str]
) -> Iterator[tuple[str, Row | Unreadable]]:
    with _parquet(path) as file:
        known = set(file.schema_arrow.names)
        wanted = [name for name in columns if name in known]
        if not wanted:
            raise LeftOut("no such column", f"{path} has none of the columns {', '.join(columns)}")
        start = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if start < first + count and start + size > first:
                begin, end = max(first - start, 0), min(first + count - start, size)
                number = start
                for batch in file.iter_batches(
                    batch_size=_rows_at_a_time(file, path, group), row_groups=[group], columns=wanted
                ):
                    for row in batch.to_pylist():
                        if begin <= number - start < end:
                            yield f"{path}:{number}", row
                        number += 1
            start += size


def _rows_at_a_time(file: Any, path: Place, group: int) -> int:
    """Rows of a group that are decoded together: a value may be as long as its whole column, and be said once for all rows.

    The group's own figures alone are asked: those of a damaged column end the process in pyarrow.

    Raises:
        UserError: the group unpacks to what nobody stores in so few bytes.
    """
    packed, unpacked = path.stat().st_size, int(file.metadata.row_group(group).total_byte_size)
    if unpacked > _LARGE_GROUP and unpacked > _MOST_PACKED * packed:
        raise UserError(f"{path}: row group {group} unpacks from {packed:,} to {unpacked:,} bytes, which is no corpus")
    return max(1, min(_AT_A_TIME, _LARGE_GROUP // max(unpacked, 1)))


_AT_A_TIME = 64
_LARGE_GROUP, _MOST_PACKED = 256 << 20, 1000  # bytes; times
