"""What every reader gives: parts that can be done in any order, and the raw samples of a part."""

import base64
import binascii
import hashlib
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeAlias, TypeVar

from vita_audio_pl.errors import UserError, is_machine_fault, shown
from vita_audio_pl.storage.places import Place, relative
from vita_audio_pl.text import Conversation

Made = TypeVar("Made")

NO_SAMPLE, NO_TEXT, NO_TRANSCRIPT, NO_AUDIO = "not a sample", "not text", "no transcript", "no audio"
DAMAGED_FILE, NO_QUESTION = "damaged file", "no question"

EACH = "each"
"""The option `channel: each`: every channel of a recording is an utterance of its own."""

LONGEST_NAME, LONGEST_PROBLEM = 300, 1000
"""Characters of names and of problems in reports; a row may hold megabytes in the place of either."""


class LeftOut(UserError):
    """Why a sample is left out, and the name under which that is counted."""

    def __init__(self, reason: str, problem: str):
        super().__init__(problem)
        self.reason = reason


class Filtered(LeftOut):
    """Why a sample is not wanted, as the recipe's filters say: no fault of the corpus."""


@dataclass(frozen=True)
class AudioFile:
    """Audio in a file, or `seconds` of it from `start` on (None: to its end); `channel` None mixes all."""

    path: Place
    start: float = 0.0
    seconds: float | None = None
    channel: int | None = None

    def __str__(self) -> str:
        cut = f" [{self.start:g} s, {self.seconds:g} s long]" if self.seconds is not None else ""
        return f"{self.path}{cut}"


@dataclass(frozen=True)
class AudioBytes:
    """Audio inside another file; `name` is for messages; `channel` None mixes all."""

    name: str
    data: bytes = field(repr=False)
    channel: int | None = None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ToSpeak:
    """Audio that is not there yet: a text that a voice speaks when its sound is asked for; `name` is for messages."""

    name: str
    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.name


Recorded: TypeAlias = AudioFile | AudioBytes
AudioRef: TypeAlias = Recorded | ToSpeak


@dataclass(frozen=True)
class RawSample:
    """A conversation and the audio that its placeholders stand for, in order.

    Attributes:
        transcript: of a recording with its transcript, what is said in the last audio; else empty.
        speaker: of the last audio; empty where that is not known.
    """

    conversation: Conversation
    audios: tuple[AudioRef, ...] = ()
    transcript: str = ""
    speaker: str = ""


def check_asked(conversation: Conversation) -> None:
    """Raises `LeftOut` where no answer follows a question."""
    roles = [message.role for message in conversation.messages]
    if "assistant" in roles and ("user" not in roles or "assistant" not in roles[roles.index("user") :]):
        raise LeftOut(NO_QUESTION, f"{conversation.id}: no answer of the assistant follows a message of the user")


@dataclass(frozen=True)
class Unreadable:
    """A sample that the reader cannot make sense of.

    Attributes:
        where: its place or its name.
        problem: what is wrong, in a sentence.
        reason: under which name it is counted.
        trace: of an error that nobody foresaw, where it was raised.
        rest: what follows in the same part could not be read either.
        filtered: nothing is wrong, the recipe's filters do not want it.
    """

    where: str
    problem: str
    reason: str = NO_SAMPLE
    trace: str = ""
    rest: bool = False
    filtered: bool = False


@dataclass(frozen=True)
class Part:
    """A piece of a corpus that one task turns into one shard.

    Attributes:
        name: for messages.
        identity: changes when the piece's content does; names the output, together with codec and tokenizer.
        where: what the reader needs to find the piece again; `problem` says why it cannot be read.
        changed: time of the last change of its file (ns), where `identity` does not cover every byte of it.
        content: tells which recordings it has, whatever is made of them: the name under which their codes are kept.
    """

    name: str
    identity: str
    where: Mapping[str, str | int]
    changed: int = 0
    content: str = ""


class Reader(Protocol):
    """A corpus on disk. Cheap to pickle: workers get a copy."""

    def parts(self) -> list[Part]:
        """The corpus in pieces, always in the same order; raises UserError where it is not laid out as it should.

        A file of it that cannot be read is a piece that says so.
        """
        ...

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        """The samples of a piece, in order; what cannot be read is named, not dropped."""
        ...


def read_part(reader: Reader, part: Part) -> Iterator[RawSample | Unreadable]:
    """The samples of a part; an error that ends the reading is named as the rest of the part.

    Raises:
        Exception: the machine failed, not the corpus (`errors.is_machine_fault`).
    """
    if problem := part.where.get("problem"):
        yield Unreadable(part.name, str(problem), DAMAGED_FILE, rest=True)
        return
    try:
        yield from reader.read(part)
    except Exception as error:
        yield unreadable(part.name, error, DAMAGED_FILE, rest=True)


def attempt(where: str, make: Callable[..., Made], *arguments: Any) -> Made | Unreadable:
    """What `make(*arguments)` returns, or why there is none: the boundary around one row of a corpus.

    Raises:
        Exception: the machine failed, not the row (`errors.is_machine_fault`).
    """
    try:
        return make(*arguments)
    except Exception as error:
        return unreadable(where, error)


def unreadable(where: str, error: Exception, reason: str = NO_SAMPLE, rest: bool = False) -> Unreadable:
    """An error as what it means for the sample that it was raised for.

    Raises:
        Exception: `error` itself, where the machine failed (`errors.is_machine_fault`).
    """
    if is_machine_fault(error):
        raise error
    if isinstance(error, UserError):
        problem = str(error)
        problem = problem if problem.startswith(where) else f"{where}: {problem}"
        filtered = isinstance(error, Filtered)
        return Unreadable(where, problem, getattr(error, "reason", reason), rest=rest, filtered=filtered)
    if isinstance(error, OSError) and error.filename is not None:  # a name too long, a loop of links, no permission
        return Unreadable(
            where,
            f"{where}: {shown(str(error.filename))} cannot be opened ({error.strerror})",
            "file cannot be opened",
            rest=rest,
        )
    frame = traceback.extract_tb(error.__traceback__)[-1]
    kind = type(error).__name__
    trace = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}: {kind}: {error!s:.300}"
    return Unreadable(where, f"{where}: {kind}: {error!s:.300}", f"unexpected {kind}", trace, rest)


def broken_part(name: str, identity: str, error: UserError) -> Part:
    """A part that stands for a file that cannot be read."""
    return Part(name, f"{identity} {error}", {"problem": str(error)})


_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def audio_ref(value: Any, root: Place, where: str, inside: bool = True, channel: int | None = None) -> Recorded:
    """Audio as a corpus gives it: a path, a data URI, a file's bytes, or a Hugging Face `Audio` feature of `bytes` and `path`.

    Args:
        root: folder that relative paths start from.
        where: name of audio that is no file.
        inside: refuse paths that lead out of `root`.
        channel: which channel of it to take; None mixes all.

    Raises:
        LeftOut: it is none of these, or lies somewhere else.
    """
    if isinstance(value, Mapping):
        data = value.get("bytes")
        if isinstance(data, bytes) and data:
            return AudioBytes(where, data, channel)
        value = value.get("path")
    elif isinstance(value, bytes) and value:
        return AudioBytes(where, value, channel)
    if not isinstance(value, str) or not value:
        raise LeftOut(NO_AUDIO, f"{where}: there is no audio")
    if head := _DATA_URI.match(value):
        try:
            return AudioBytes(where, base64.b64decode(value[head.end() :], validate=True), channel)
        except (binascii.Error, ValueError) as error:
            raise LeftOut("unreadable audio", f"{where}: its data URI cannot be decoded: {error}") from None
    if value.startswith("data:") or _URL.match(value):
        raise LeftOut("audio elsewhere", f"{where}: {value:.100} is not fetched; give files")
    path = PurePosixPath(value)
    if inside and (path.is_absolute() or ".." in path.parts):
        raise LeftOut(NO_AUDIO, f"{where}: the path {value!r:.200} leads out of the corpus")
    return AudioFile(root / path, channel=channel)


def parts_matching(root: Place, patterns: Sequence[str]) -> tuple[list[Place], list[Part]]:
    """`files_matching`, and a broken part for each name that a glob finds and that is neither a file nor a folder.

    These are links that lead nowhere, as git-annex or a disk that moved leaves them, pipes and devices; none is opened.

    Raises:
        UserError: as `files_matching`.
    """
    found = files_matching(root, patterns, plain=False)
    wrong = {path: problem for path in found if (problem := not_plain(path))}
    broken = [broken_part(relative(path, root).as_posix(), "", UserError(wrong[path])) for path in wrong]
    return [path for path in found if path not in wrong], broken


def not_plain(path: Place) -> str:
    """Why what lies there is no file; empty where it is one or nothing is there, and of stores, which have nothing else."""
    if not isinstance(path, Path) or path.is_file() or not (path.is_symlink() or path.exists()):
        return ""
    if path.is_symlink():
        return f"{path} is a link to {os.readlink(path)}, where no file is: fetch it, or mount its disk"
    return f"{path} is no plain file but a pipe, a socket or a device"


def files_matching(root: Place, patterns: Sequence[str], plain: bool = True) -> list[Place]:
    """Files below `root` that any of the globs finds, in the order of the globs and then by name, each once.

    With `plain` off, everything but folders. `._name` files, in which macOS keeps attributes on other file systems, are none
    of the corpus.

    Raises:
        UserError: a glob leads out of `root` or is none, or no file matches.
    """
    found: dict[Place, None] = {}
    for pattern in patterns:
        if ".." in Path(pattern).parts or Path(pattern).is_absolute():
            raise UserError(f"the pattern {pattern!r} leads out of {root}: give globs below root")
        try:
            names = (path for path in root.glob(pattern) if not is_apple_double(path.name))
            matches = sorted(path for path in names if path.is_file() or not (plain or path.is_dir()))
        except (ValueError, NotImplementedError, re.error) as error:
            raise UserError(f"the pattern {pattern!r} is not a glob: {error}") from None
        except OSError as error:
            raise UserError(f"{root} cannot be listed for {pattern!r}: {error}") from error
        found |= dict.fromkeys(matches)
    if not found:
        raise UserError(f"no file matches {', '.join(patterns)} in {root}: check where the corpus is (root) and files")
    return list(found)


Stamp: TypeAlias = tuple[int, int]
"""Time of the last change of a file (ns) and its size: what is kept of a file holds as long as they stay."""


def stamp_of(path: Place) -> Stamp | None:
    """Time of the last change and size; None where there is no such file."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def is_apple_double(name: str) -> bool:
    """Whether a file of this name holds what macOS keeps beside another one."""
    return name.startswith("._")


_WHOLE = 2**20  # bytes of a file that is read from end to end to see whether it is the same
_PIECE, _PIECES = 2**14, 8  # bytes and number of the pieces that are read of a larger one
_READERS = 16  # files looked at at a time


def file_parts(root: Place, patterns: Sequence[str], rules: str) -> list[Part]:
    """A part for each file that the patterns find, and for what they find that is no file; rules: of reading, for identities."""
    paths, broken = parts_matching(root, patterns)
    names = [relative(path, root).as_posix() for path in paths]
    return broken + [
        Part(name, f"{same} {rules}", {"path": name}, path.stat().st_mtime_ns, same)
        for name, path, same in zip(names, paths, file_identities(paths, root), strict=True)
    ]


def file_identities(paths: Sequence[Place], root: Place) -> list[str]:
    """Of each file its name below `root`, its size, and a hash of its content: of all of it up to 1 MiB, else of pieces.

    Copying or moving a corpus keeps them. Reading large files whole would take hours, so a change of a few bytes that
    leaves the size the same may escape: `Part.changed` tells that there may have been one.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda path: _identity(path, root), paths))


def _identity(path: Place, root: Place) -> str:
    digest, name = hashlib.sha256(), relative(path, root).as_posix()
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=_PIECE) as file:
            if size <= _WHOLE:
                digest.update(file.read())
            else:
                for number in range(_PIECES):  # the first and the last bytes among them
                    file.seek((size - _PIECE) * number // (_PIECES - 1))
                    digest.update(file.read(_PIECE))
    except OSError as error:
        if is_machine_fault(error):
            raise
        return f"{name} {error.strerror}"  # whoever reads it reports it
    return f"{name} {size} {digest.hexdigest()[:32]}"
