"""Reads the members of a tar in order and in bounded memory, and detects truncated archives.

`tarfile` stops silently where an archive was cut between two members or has a damaged header, and reads header
extensions of any size into memory; so this module walks the archive itself and uses only its header parser.
"""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from vita_audio_pl.storage.places import Place

LARGEST_MEMBER = 256 << 20
"""Largest member that is read, bytes; an utterance is smaller."""

_BLOCK = 512
_LARGEST_EXTENSION = 1 << 20  # bytes of a header extension: a name, and attributes of a file
_MOST_UNPACKED = 1000  # times; no recording shrinks so, and what does could be read for days
_MOST_PADDING = 4 << 20  # bytes of zeros after the end that are searched for a further archive
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class ArchiveError(Exception):
    """An archive that cannot be read to its end; the message says why."""


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: as in the archive; never to be used as a path.
        data: its bytes; None if it is not read.
        problem: why it is not read.
    """

    name: str
    data: bytes | None
    problem: str = ""


def members(path: Place) -> Iterator[Member]:
    """Files of a tar (plain, gzip, bzip2 or xz), in order; several archives in one file are read as one.

    Raises:
        ArchiveError: the archive is damaged or cut.
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as raw:
            yield from _members(_unpacked(raw), raw)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError) as error:
        raise ArchiveError(str(error) or type(error).__name__) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise ArchiveError(str(error)) from None  # bzip2 reports bad data by an error without a number


def _unpacked(raw: BinaryIO) -> BinaryIO:
    start = raw.read(6)
    raw.seek(0)
    if start[:2] == b"\x1f\x8b":
        return gzip.open(raw)  # type: ignore[return-value]  # these are files of bytes in all but their declared class
    if start[:3] == b"BZh":
        return bz2.open(raw)  # type: ignore[return-value]  # likewise
    if start == b"\xfd7zXZ\x00":
        return lzma.open(raw)  # type: ignore[return-value]  # likewise
    return raw


def _members(file: BinaryIO, raw: BinaryIO) -> Iterator[Member]:
    name, extended = "", dict[str, str]()
    closed, padding = False, 0
    while header := file.read(_BLOCK):
        if not header.strip(b"\0"):
            closed, padding = True, padding + len(header)
            if padding > _MOST_PADDING:
                return
            continue
        if len(header) < _BLOCK:
            raise ArchiveError("it is cut in the header of a member")
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        closed, padding = False, 0
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if info.size > _LARGEST_EXTENSION:
                raise ArchiveError(f"the header of a member has {info.size} bytes")
            extension = _read(file, info.size)
            if info.type == tarfile.XHDTYPE:
                extended = _attributes(extension)
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                name = extension.rstrip(b"\0").decode("utf-8", "surrogateescape")
            continue
        size = int(extended.get("size", info.size))
        name = extended.get("path") or name or info.name
        if size < 0:
            raise ArchiveError(f"{name!r:.200} has {size} bytes")
        if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in extended):
            yield Member(name, None, "it is a sparse file")
            _skip_sparse(file, header, info.type)
            _skip(file, size, raw)
        elif info.type not in _PLAIN or info.name.endswith("/"):
            _skip(file, size if info.type in _PLAIN else 0, raw)
        elif size > LARGEST_MEMBER:
            yield Member(name, None, f"{size} bytes are too many for an utterance")
            _skip(file, size, raw)
        else:
            yield Member(name, _read(file, size))
        name, extended = "", {}
    if not closed:
        raise ArchiveError("it ends without its closing blocks, so it was cut")


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ArchiveError("it is cut in a member")
    file.read(-size % _BLOCK)
    return data


def _skip(file: BinaryIO, size: int, raw: BinaryIO) -> None:
    left = size + -size % _BLOCK
    while left:
        if file is not raw and file.tell() > _MOST_UNPACKED * max(raw.tell(), _LARGEST_EXTENSION):
            raise ArchiveError(f"it unpacks to more than {_MOST_UNPACKED} times its size")
        piece = file.read(min(left, 1 << 20))
        if not piece:
            raise ArchiveError("it is cut in a member")
        left -= len(piece)


def _skip_sparse(file: BinaryIO, header: bytes, kind: bytes) -> None:
    """Skip the further blocks of a sparse file's map, which the old format stores before its content."""
    more = kind == tarfile.GNUTYPE_SPARSE and header[482] != 0
    while more:
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            raise ArchiveError("it is cut in a member")
        more = block[504] != 0


def _attributes(data: bytes) -> dict[str, str]:
    """The records `LENGTH KEY=VALUE\\n` of a pax header."""
    found: dict[str, str] = {}
    while data.strip(b"\0"):
        length = int(data.split(b" ", 1)[0])
        record = data[:length]
        key, equals, value = record[record.index(b" ") + 1 : -1].partition(b"=")
        if not (0 < length <= len(data) and equals and record.endswith(b"\n")):
            raise ArchiveError("the extended header of a member is damaged")
        found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return found
