"""The interface of readers: parts that can be processed in any order, and the raw samples of a part."""

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
from vita_audio_pl.storage.places import Place, relative, why_pointer
from vita_audio_pl.text import Conversation

Made = TypeVar("Made")

NO_SAMPLE, NO_TEXT, NO_TRANSCRIPT, NO_AUDIO = "not a sample", "not text", "no transcript", "no audio"
DAMAGED_FILE, NO_QUESTION = "damaged file", "no question"

EACH = "each"
"""Option `channel: each`: every channel of a recording is an utterance of its own."""

LONGEST_NAME, LONGEST_PROBLEM = 300, 1000
"""Longest names and problems in reports, in characters; a corrupt row may have megabytes there."""


class LeftOut(UserError):
    """A sample is left out: why, and the reason it is counted under."""

    def __init__(self, reason: str, problem: str):
        super().__init__(problem)
        self.reason = reason


class Filtered(LeftOut):
    """A sample is excluded by the recipe's filters; not a fault of the corpus."""


@dataclass(frozen=True)
class AudioFile:
    """Audio in a file, or `seconds` of it from `start` (None: to its end); `channel` None averages all channels."""

    path: Place
    start: float = 0.0
    seconds: float | None = None
    channel: int | None = None

    def __str__(self) -> str:
        cut = f" [{self.start:g} s, {self.seconds:g} s long]" if self.seconds is not None else ""
        return f"{self.path}{cut}"


@dataclass(frozen=True)
class AudioBytes:
    """Audio inside another file; `name` is for messages; `channel` None averages all channels."""

    name: str
    data: bytes = field(repr=False)
    channel: int | None = None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ToSpeak:
    """Audio to be synthesised: a text that a voice speaks when it is loaded; `name` is for messages."""

    name: str
    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class KnownCodes:
    """Audio that is given as the codes of the model's codec; `name` is for messages."""

    name: str
    codes: tuple[int, ...] = field(repr=False)

    def __str__(self) -> str:
        return self.name


Recorded: TypeAlias = AudioFile | AudioBytes
AudioRef: TypeAlias = Recorded | ToSpeak
AnyAudio: TypeAlias = AudioRef | KnownCodes


@dataclass(frozen=True)
class RawSample:
    """A conversation and the audio of its placeholders, in order.

    Attributes:
        transcript: for a recording with its transcript, the words of the last audio; else empty.
        speaker: speaker of the last audio; empty if unknown.
    """

    conversation: Conversation
    audios: tuple[AnyAudio, ...] = ()
    transcript: str = ""
    speaker: str = ""


def check_asked(conversation: Conversation) -> None:
    """Raise `LeftOut` if there is no answer after a question."""
    roles = [message.role for message in conversation.messages]
    if "assistant" in roles and ("user" not in roles or "assistant" not in roles[roles.index("user") :]):
        raise LeftOut(NO_QUESTION, f"{conversation.id}: no answer of the assistant follows a message of the user")


@dataclass(frozen=True)
class Unreadable:
    """A sample that the reader cannot use.

    Attributes:
        where: its location or name.
        problem: what is wrong, in one sentence.
        reason: reason it is counted under.
        trace: for an unexpected error, where it was raised.
        rest: whether the rest of the part is unreadable as well.
        filtered: excluded by the recipe's filters, not faulty.
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
        name: name for messages.
        identity: changes with the piece's content; the output is named after it, the codec and the tokenizer.
        where: what the reader needs to find the piece again; `problem` says why it cannot be read.
        changed: modification time of its file (ns), if `identity` does not cover every byte of it.
        content: identifies its recordings independently of options; the cache of their codes is named after it.
    """

    name: str
    identity: str
    where: Mapping[str, str | int]
    changed: int = 0
    content: str = ""


class Reader(Protocol):
    """A corpus on disk. Cheap to pickle: workers get a copy."""

    def parts(self) -> list[Part]:
        """The corpus in pieces, always in the same order; raises UserError if the layout is not as expected.

        An unreadable file becomes a piece that says so.
        """
        ...

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        """The samples of a piece, in order; unreadable ones are reported, not dropped."""
        ...


def read_part(reader: Reader, part: Part) -> Iterator[RawSample | Unreadable]:
    """The samples of a part; an error that ends reading is reported as the rest of the part.

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
    """The result of `make(*arguments)`, or why there is none: the error boundary around one row of a corpus.

    Raises:
        Exception: the machine failed, not the row (`errors.is_machine_fault`).
    """
    try:
        return make(*arguments)
    except Exception as error:
        return unreadable(where, error)


def unreadable(where: str, error: Exception, reason: str = NO_SAMPLE, rest: bool = False) -> Unreadable:
    """An error as a report about the sample that it was raised for.

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
    """A part for a file that cannot be read."""
    return Part(name, f"{identity} {error}", {"problem": str(error)})


_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def audio_ref(value: Any, root: Place, where: str, inside: bool = True, channel: int | None = None) -> Recorded:
    """Audio in the forms that corpora use: a path, a data URI, bytes, or a Hugging Face `Audio` feature.

    Args:
        root: folder that relative paths start from.
        where: name for messages of audio that is not a file.
        inside: refuse paths that lead out of `root`.
        channel: channel to take; None averages all.

    Raises:
        LeftOut: it is none of these, or outside `root`.
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
    """`files_matching`, and a broken part for each match that is neither a file nor a folder.

    These are dangling links, as left by git-annex or a moved disk, pipes and devices; none is opened.

    Raises:
        UserError: as `files_matching`.
    """
    found = files_matching(root, patterns, plain=False)
    wrong = {path: problem for path in found if (problem := not_plain(path))}
    broken = [broken_part(relative(path, root).as_posix(), "", UserError(wrong[path])) for path in wrong]
    return [path for path in found if path not in wrong], broken


def not_plain(path: Place) -> str:
    """Why this path is not a file; empty if it is one or does not exist, and for object stores, which have only files."""
    if not isinstance(path, Path):
        return ""
    if path.is_file():
        return why_pointer(path)
    if not (path.is_symlink() or path.exists()):
        return ""
    if path.is_symlink():
        return f"{path} is a link to {os.readlink(path)}, where no file is: fetch it, or mount its disk"
    return f"{path} is no plain file but a pipe, a socket or a device"


def files_matching(root: Place, patterns: Sequence[str], plain: bool = True) -> list[Place]:
    """Files below `root` that match any of the globs, in the order of the globs and then by name, without duplicates.

    With `plain` off, everything but folders. `._name` files, in which macOS stores attributes on other file systems,
    are ignored.

    Raises:
        UserError: a glob leads out of `root` or is invalid, or no file matches.
    """
    found: dict[Place, None] = {}
    for pattern in patterns:
        matches = (path for path in _matching(root, pattern) if path.is_file() or not (plain or path.is_dir()))
        found |= dict.fromkeys(sorted(matches))
    if not found:
        raise UserError(f"no file matches {', '.join(patterns)} in {root}: check where the corpus is (root) and files")
    return list(found)


def finds(root: Place, pattern: str) -> bool:
    """Whether a glob finds anything but folders below `root`; raises as `files_matching` does, but for no match."""
    return any(not path.is_dir() for path in _matching(root, pattern))


def _matching(root: Place, pattern: str) -> Iterator[Place]:
    """What a glob finds below `root`."""
    if ".." in Path(pattern).parts or Path(pattern).is_absolute():
        raise UserError(f"the pattern {pattern!r} leads out of {root}: give globs below root")
    try:
        yield from (path for path in root.glob(pattern) if not is_apple_double(path.name))
    except (ValueError, NotImplementedError, re.error) as error:
        raise UserError(f"the pattern {pattern!r} is not a glob: {error}") from None
    except OSError as error:
        raise UserError(f"{root} cannot be listed for {pattern!r}: {error}") from error


Stamp: TypeAlias = tuple[int, int]
"""Modification time (ns) and size of a file: cached facts about it are valid while they stay the same."""


def stamp_of(path: Place) -> Stamp | None:
    """Modification time and size; None if there is no such file."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def is_apple_double(name: str) -> bool:
    """Whether macOS stores a file's attributes under this name."""
    return name.startswith("._")


_WHOLE = 2**20  # largest file, in bytes, that is hashed whole
_PIECE, _PIECES = 2**14, 8  # bytes per piece, and number of pieces, that are hashed of a larger one
READERS = 16
"""Files that are hashed at a time."""


def file_parts(root: Place, patterns: Sequence[str], rules: str) -> list[Part]:
    """A part for each match of the patterns, also for matches that are not files; rules: options that identities depend on."""
    paths, broken = parts_matching(root, patterns)
    names = [relative(path, root).as_posix() for path in paths]
    return broken + [
        Part(name, f"{same} {rules}", {"path": name}, path.stat().st_mtime_ns, same)
        for name, path, same in zip(names, paths, file_identities(paths, root), strict=True)
    ]


def file_identities(paths: Sequence[Place], root: Place) -> list[str]:
    """For each file its name below `root`, its size, and a hash of its content: all of it up to 1 MiB, else pieces.

    Unchanged by copying or moving a corpus. Hashing large files whole would take hours, so a change of a few bytes that
    keeps the size may go unnoticed; `Part.changed` indicates that there may have been one.
    """
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda path: f"{relative(path, root).as_posix()} {content_of(path)}", paths))


def content_of(path: Place, whole: bool = False) -> str:
    """Size and a hash of a file as in `file_identities`, or of all its bytes; why it cannot be read, where it cannot.

    Raises:
        OSError: the machine failed, not the file.
    """
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        if isinstance(path, Path) and not path.is_file():  # opening a pipe would wait for a writer
            return "no plain file"
        with path.open("rb", buffering=_PIECE) as file:
            if whole or size <= _WHOLE:
                while block := file.read(_WHOLE):
                    digest.update(block)
            else:
                for number in range(_PIECES):  # including the first and the last bytes
                    file.seek((size - _PIECE) * number // (_PIECES - 1))
                    digest.update(file.read(_PIECE))
    except (OSError, ValueError) as error:  # ValueError: names that no file can have
        if is_machine_fault(error):
            raise
        return str(getattr(error, "strerror", error))  # reading it later will report the error
    return f"{size} {digest.hexdigest()[:32]}"
