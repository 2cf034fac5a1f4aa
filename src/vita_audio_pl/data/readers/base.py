"""What every reader gives: parts that can be done in any order, and the raw samples of a part."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from vita_audio_pl.errors import UserError
from vita_audio_pl.text import Conversation


@dataclass(frozen=True)
class AudioFile:
    """Audio in a file, or `seconds` of it from `start` on (None: to its end)."""

    path: Path
    start: float = 0.0
    seconds: float | None = None

    def __str__(self) -> str:
        cut = f" [{self.start:g} s, {self.seconds:g} s long]" if self.seconds is not None else ""
        return f"{self.path}{cut}"


@dataclass(frozen=True)
class AudioBytes:
    """Audio inside another file; `name` is for messages."""

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


AudioRef: TypeAlias = AudioFile | AudioBytes


@dataclass(frozen=True)
class RawSample:
    """A conversation and the audio that its placeholders stand for, in order."""

    conversation: Conversation
    audios: tuple[AudioRef, ...] = ()


@dataclass(frozen=True)
class Unreadable:
    """A sample that the reader cannot make sense of: where it is, what is wrong, and under which name it is counted."""

    where: str
    problem: str
    reason: str = "not a sample"


@dataclass(frozen=True)
class Part:
    """A piece of a corpus that one task turns into one shard.

    Attributes:
        name: for messages.
        identity: changes when the piece's content does; names the output, together with codec and tokenizer.
        where: what the reader needs to find the piece again.
        changed: time of the last change of its file (ns), where `identity` does not cover every byte of it.
    """

    name: str
    identity: str
    where: Mapping[str, str | int]
    changed: int = 0


class Reader(Protocol):
    """A corpus on disk. Cheap to pickle: workers get a copy."""

    def parts(self) -> list[Part]:
        """The corpus in pieces, always in the same order; raises UserError where it is not laid out as it should."""
        ...

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        """The samples of a piece, in order; what cannot be read is named, not dropped."""
        ...


def files_matching(root: Path, patterns: Sequence[str]) -> list[Path]:
    """Files below `root` that any of the globs finds, in the order of the globs and then by name, each once.

    Raises:
        UserError: a glob leads out of `root`, or no file matches.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        if ".." in Path(pattern).parts or Path(pattern).is_absolute():
            raise UserError(f"the pattern {pattern!r} leads out of {root}: give globs below root")
        found |= dict.fromkeys(sorted(path for path in root.glob(pattern) if path.is_file()))
    if not found:
        raise UserError(f"no file matches {', '.join(patterns)} in {root}: check where the corpus is (root) and files")
    return list(found)


_WHOLE = 2**20  # bytes of a file that is read from end to end to tell whether it is the same
_PIECE, _PIECES = 2**14, 8  # bytes and number of the pieces that are read of a larger one
_READERS = 16  # files looked at at a time


def file_identities(paths: Sequence[Path], root: Path) -> list[str]:
    """Of each file its name below `root`, its size, and a hash of its content: of all of it up to 1 MiB, else of pieces.

    Copying or moving a corpus keeps them. Reading large files whole would take hours, so a change of a few bytes that
    leaves the size the same may escape: `Part.changed` tells that there may have been one.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda path: _identity(path, root), paths))


def _identity(path: Path, root: Path) -> str:
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            for number in range(_PIECES):  # the first and the last bytes among them
                file.seek((size - _PIECE) * number // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    return f"{path.relative_to(root).as_posix()} {size} {digest.hexdigest()[:32]}"
