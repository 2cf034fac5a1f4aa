"""Checksums of stored files by block, so that a flipped bit is detected, and located, when the bytes are used.

`checksums.json` in a folder lists its files: their size and the XXH3-64 of each block of 16 MiB. Small files that we
write are sealed: they contain the XXH3-64 of their own bytes.
"""

import io
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import xxhash

from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.storage.files import atomic_write
from vita_audio_pl.storage.node import once_a_node
from vita_audio_pl.storage.places import Place, PlaceT
from vita_audio_pl.storage.remote import RemotePath

if TYPE_CHECKING:
    from typing_extensions import Buffer

CHECKSUMS = "checksums.json"
FORMAT = 1
BLOCK = 16 * 2**20  # bytes
_PIECE = 2**20  # bytes read at a time: small enough to be in the CPU cache when they are hashed
_MOST_THREADS = 8
_SEAL = b'"seal": "'
_NO_SEAL = b"0" * 16


@dataclass(frozen=True)
class FileSum:
    """Size and checksums of a file when it was written.

    Attributes:
        bytes: its size.
        blocks: XXH3-64 of each `BLOCK` bytes, 16 hex digits each; empty if only the size is known.
    """

    bytes: int
    blocks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "xxh3_64": " ".join(self.blocks)}

    @classmethod
    def from_json(cls, value: Any) -> "FileSum":
        """The inverse of `to_json`.

        Raises:
            ValueError: the value is not valid.
        """
        try:
            size, blocks = value["bytes"], tuple(value["xxh3_64"].split())
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not the checksums of a file: {value!r}") from error
        if type(size) is not int or len(blocks) != -(-size // BLOCK):
            raise ValueError(f"{size} bytes with {len(blocks)} checksums")
        return cls(size, blocks)


@dataclass(frozen=True)
class Damage:
    """A file that does not match its checksums; `problem` continues a sentence that starts with its name."""

    path: Place
    problem: str

    def __str__(self) -> str:
        return f"{self.path} {self.problem}"


class SummedFile(io.RawIOBase):
    """A binary file being written sequentially, with checksums computed on the way; the caller owns `file`."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._blocks: list[str] = []
        self._hash, self._filled = xxhash.xxh3_64(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: "Buffer") -> int:
        rest = memoryview(data).cast("B")
        written = len(rest)
        self._file.write(rest)
        while len(rest):
            part = rest[: BLOCK - self._filled]
            self._hash.update(part)
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == BLOCK:
                self._blocks.append(self._hash.hexdigest())
                self._hash, self._filled = xxhash.xxh3_64(), 0
        return written

    def tell(self) -> int:
        return self._file.tell()

    @property
    def sum(self) -> FileSum:
        """Checksums of what was written so far."""
        last = (self._hash.hexdigest(),) if self._filled else ()
        return FileSum(len(self._blocks) * BLOCK + self._filled, (*self._blocks, *last))


class VerifiedFile:
    """A file that is read by ranges; each block is checked against its checksum when a range needs it.

    Attributes:
        bytes_read: from the disk, whole blocks; one that the next range needs again is not read again.
    """

    def __init__(self, path: Path, expected: FileSum):
        self.path, self.expected = path, expected
        self.bytes_read = 0
        self._number, self._block = -1, b""

    def __enter__(self) -> "VerifiedFile":
        self._file = self.path.open("rb", buffering=0)
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._block = b""

    def read_into(self, start: int, target: bytearray) -> None:
        """Fill `target` with the bytes from `start` on.

        Raises:
            ValueError: with the bytes that do not match.
            OSError: the file cannot be read.
        """
        done = 0
        while done < len(target):
            number, at = divmod(start + done, BLOCK)
            if number != self._number:
                self._block, self._number = self._read(number), number
            part = self._block[at : at + len(target) - done]
            target[done : done + len(part)] = part
            done += len(part)

    def _read(self, number: int) -> bytes:
        start = number * BLOCK
        stop = min(start + BLOCK, self.expected.bytes)
        data = b""
        while start + len(data) < stop and (
            more := os.pread(self._file.fileno(), stop - start - len(data), start + len(data))
        ):
            data += more
        self.bytes_read += len(data)
        if start >= stop or xxhash.xxh3_64_hexdigest(data) != self.expected.blocks[number]:
            problem = f"is damaged: bytes {start} to {stop - 1} are not what was written"
            raise ValueError(str(Damage(self.path, problem)))
        return data


def sum_of_bytes(data: bytes) -> FileSum:
    """Checksums of a file with the contents `data`."""
    view = memoryview(data)
    starts = range(0, len(data), BLOCK)
    return FileSum(len(data), tuple(xxhash.xxh3_64_hexdigest(view[at : at + BLOCK]) for at in starts))


def sum_of_files(paths: Collection[PlaceT]) -> dict[PlaceT, FileSum]:
    """Checksums of files on disk, read by several threads.

    Raises:
        OSError: a file cannot be read.
    """
    sizes = {path: path.stat().st_size for path in paths}
    work = [(path, start) for path, size in sizes.items() for start in range(0, size, BLOCK)]
    with _threads() as pool:
        digests = list(pool.map(_sum_block, *zip(*work, strict=True))) if work else []
    blocks: dict[PlaceT, list[str]] = {path: [] for path in paths}
    for (path, _), digest in zip(work, digests, strict=True):
        blocks[path].append(digest)
    return {path: FileSum(sizes[path], tuple(blocks[path])) for path in paths}


def sum_of_folder(folder: Path) -> dict[str, FileSum]:
    """Checksums of all files below a folder by relative name, except hidden and sealed ones."""
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if (
            path.is_file()
            and not hidden
            and path.name != CHECKSUMS
            and not (path.suffix == ".json" and is_sealed(path.read_bytes()))
        ):
            found.append(path)
    return {path.relative_to(folder).as_posix(): made for path, made in sum_of_files(found).items()}


def write_checksums(folder: Place, sums: Mapping[str, FileSum], name: str = CHECKSUMS, **more: Any) -> None:
    """Write `checksums.json` for files of a folder, by relative name; `name` is another file name, `more` is added to it."""
    files = {name: found.to_json() for name, found in sums.items()}
    write_sealed(folder / name, {"format": FORMAT, "block": BLOCK, "files": files, **more})


def read_checksums(folder: Place) -> dict[str, FileSum] | None:
    """The contents of `checksums.json` by relative name; None if an older version wrote none.

    Raises:
        UserError: it is damaged, or of a later format.
    """
    path = folder / CHECKSUMS
    try:
        return parse_checksums(path, path.read_bytes())
    except FileNotFoundError:
        return None


def parse_checksums(path: Place, data: bytes) -> dict[str, FileSum]:
    """The contents `data` of `path`, a `checksums.json`.

    Raises:
        UserError: it is damaged, or of a later format.
    """
    values = unsealed(path, data)
    if values.get("format") != FORMAT or values.get("block") != BLOCK:
        raise UserError(
            f"{path} has format {values.get('format')} with blocks of {values.get('block')} bytes; this version reads "
            f"format {FORMAT} with blocks of {BLOCK}"
        )
    try:
        sums = {str(name): FileSum.from_json(value) for name, value in values["files"].items()}
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error})") from error
    for name in sums:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{path} names the file {name!r}, which is outside its folder")
    return sums


def find_damage(folder: Place, sums: Mapping[str, FileSum]) -> Iterator[Damage]:
    """Check files against their checksums in several threads; files with a wrong size are not read.

    Raises:
        OSError: the machine cannot read now, which says nothing about the files.
    """
    whole: list[str] = []
    for name, expected in sums.items():
        damage = size_damage(folder / name, expected.bytes)
        if damage is None:
            whole.append(name)
        else:
            yield damage
    work = [
        (folder / name, start, digest)
        for name in whole
        for start, digest in zip(range(0, sums[name].bytes, BLOCK), sums[name].blocks, strict=False)
    ]
    with _threads() as pool:
        found = pool.map(_try_block, [path for path, _, _ in work], [start for _, start, _ in work])
        for (path, start, digest), result in zip(work, found, strict=True):
            if isinstance(result, OSError) and is_machine_fault(result):
                raise result
            if result != digest:
                end = min(start + BLOCK, path.stat().st_size)
                problem = f"cannot be read ({result})" if isinstance(result, OSError) else "are not what was written"
                yield Damage(path, f"is damaged: bytes {start} to {end - 1} {problem}")


def size_damage(path: Place, size: int) -> Damage | None:
    """Whether a file is missing, or does not have `size` bytes, as a sentence."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return Damage(path, "is missing")
    except OSError as error:
        if is_machine_fault(error):
            raise
        return Damage(path, f"cannot be read ({error.strerror})")
    return None if found == size else Damage(path, f"has {found} bytes where {size} were written")


def verify(folder: Place, sums: Mapping[str, FileSum], remedy: str) -> None:
    """Read files and check them against their checksums; processes of a node that do so at the same time share the work.

    Args:
        sums: checksums of the files to read, by relative name.
        remedy: what to do about damage, as an imperative.

    Raises:
        UserError: with the first damaged file, the bytes, and the remedy.
    """
    if sums:
        work = xxhash.xxh3_64_hexdigest(repr((folder.absolute(), sums)).encode())
        once_a_node(work, lambda: refuse(find_damage(folder, sums), remedy))


def refuse(damages: Iterable[Damage], remedy: str) -> None:
    """Raise a `UserError` if there is any damage."""
    found = list(damages)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(f"{found[0]}{more}; {remedy}")


def sealed(value: Mapping[str, Any]) -> bytes:
    """A JSON object with the checksum of its own bytes, `seal`, as its last key; lines of UTF-8."""
    text = json.dumps({**value, "seal": _NO_SEAL.decode()}, indent=1, ensure_ascii=False)
    data = text.encode("utf-8", "backslashreplace") + b"\n"  # an unpaired surrogate becomes a JSON escape
    return _with_seal(data, xxhash.xxh3_64_hexdigest(data).encode())


def write_sealed(path: Place, value: Mapping[str, Any]) -> None:
    """Write a sealed JSON object, atomically."""
    atomic_write(path, sealed(value))


def unsealed(path: Place, data: bytes) -> dict[str, Any]:
    """The object in `data`, the contents of `path`, without its seal.

    Raises:
        UserError: the bytes do not match the seal.
    """
    at = data.rfind(_SEAL) + len(_SEAL)
    digest = data[at : at + len(_NO_SEAL)]
    if at < len(_SEAL) or xxhash.xxh3_64_hexdigest(_with_seal(data, _NO_SEAL)).encode() != digest:
        raise UserError(f"{path} is damaged or was edited: its contents do not match its seal")
    value: dict[str, Any] = json.loads(data)
    del value["seal"]
    return value


def read_sealed(path: Place) -> dict[str, Any]:
    """Read what `write_sealed` wrote.

    Raises:
        UserError: the bytes are not those that were sealed.
        OSError: the file is missing or cannot be read.
    """
    return unsealed(path, path.read_bytes())


def _with_seal(data: bytes, digest: bytes) -> bytes:
    at = data.rfind(_SEAL) + len(_SEAL)
    return data[:at] + digest + data[at + len(_NO_SEAL) :]


def is_sealed(data: bytes) -> bool:
    """Whether the contents of a file end in a seal."""
    return _SEAL in data[-64:]


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0))))


def _sum_block(path: Place, start: int) -> str:
    """XXH3-64 of the block of a file that begins at byte `start`."""
    if isinstance(path, RemotePath):
        return xxhash.xxh3_64_hexdigest(path.read_at(start, BLOCK))
    digest, piece = xxhash.xxh3_64(), memoryview(bytearray(_PIECE))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        at, end = start, start + BLOCK
        while n := os.preadv(descriptor, [piece[: end - at]], at):
            digest.update(piece[:n])
            at += n
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _try_block(path: Place, start: int) -> str | OSError:
    try:
        return _sum_block(path, start)
    except OSError as error:
        return error
