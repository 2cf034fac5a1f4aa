"""Files behind the URL of an object store or a web server, with the methods of `pathlib.Path` that are used here."""

import errno
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import fsspec

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.remote_file import RemoteFile, Unreachable
from vita_audio_pl.storage.secrets import without_credentials

T = TypeVar("T")

WRITABLE = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory")
"""Protocols of stores in which an object appears whole or not at all, and can be created only where there is none."""
PAUSES = (0.2, 1.0, 3.0)
"""Seconds before a request that failed is made again."""
_WEB = ("http", "https")
_EXTRAS = {"s3": "remote", "s3a": "remote", "http": "remote", "https": "remote"}
_BUFFER = 4 << 20  # bytes fetched at a time by who reads on and on


@dataclass(frozen=True)
class Status:
    """What a store says of a file.

    Attributes:
        st_size: bytes.
        st_mtime_ns: time of its last change (ns); 0 where that is not known.
        version: another one after every change, as far as the store tells.
    """

    st_size: int
    st_mtime_ns: int
    version: str


@dataclass(frozen=True)
class RemotePath:
    """A file or a folder behind a URL; has the methods of `pathlib.Path` that are used here.

    Attributes:
        base: protocol and host or bucket, with what credentials the URL holds; never to be shown.
        parts: names on the way.
        query: that every request to a web server ends with, such as a token.
        status: where a listing has given it.
    """

    base: str = field(repr=False)
    parts: tuple[str, ...] = ()
    query: str = field(default="", repr=False)
    status: Status | None = field(default=None, compare=False, repr=False)

    # ------------------------------------------------------------------------------------------------------- names

    @classmethod
    def of(cls, url: str) -> "RemotePath":
        """The place of a URL.

        Raises:
            UserError: fsspec does not know its protocol, or the package that speaks it is not installed.
        """
        protocol, _, rest = url.partition("://")
        protocol, query = protocol.lower(), ""
        shown = without_credentials(url)
        if "::" in rest.partition("/")[0] or "::" in protocol:
            raise UserError(f"'{shown}' joins several protocols: give the address of a folder or a file")
        try:
            fsspec.get_filesystem_class(protocol)
        except ValueError:
            raise UserError(f"'{shown}': fsspec knows no protocol '{protocol}'") from None
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            what = f"pip install 'vita-audio-pl[{extra}]'" if extra else str(error).splitlines()[0]
            raise UserError(f"'{shown}' needs a package that is not installed: {what}") from None
        if protocol in _WEB:
            rest, mark, query = rest.partition("?")
            query = mark + query
        host, _, names = rest.partition("/")
        return cls(f"{protocol}://{host}", query=query) / (unquote(names) if protocol in _WEB else names).lstrip("/")

    @property
    def protocol(self) -> str:
        return self.base.partition("://")[0]

    @property
    def address(self) -> str:
        """The URL, with its credentials."""
        names = (quote(name) if self.protocol in _WEB else name for name in self.parts)
        return f"{'/'.join((self.base, *names))}{self.query}"

    def __str__(self) -> str:
        return without_credentials("/".join((self.base, *self.parts)))

    def __lt__(self, other: "RemotePath") -> bool:
        return (self.base, self.parts) < (other.base, other.parts)

    def __truediv__(self, name: str | PurePosixPath) -> "RemotePath":
        """What lies below; `..` leads up, but not out of the host or bucket.

        Raises:
            UserError: the name is a path of this machine.
        """
        below = PurePosixPath(name)
        if below.is_absolute():
            raise UserError(f"{below} is a local path, and a corpus in {self} can name files there only")
        parts = list(self.parts)
        for part in below.parts:
            if part != "..":
                parts.append(part)
            elif parts:
                parts.pop()
        return RemotePath(self.base, tuple(parts), self.query)

    @property
    def name(self) -> str:
        return self.parts[-1] if self.parts else ""

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self.base, self.parts[:-1], self.query)

    def with_name(self, name: str) -> "RemotePath":
        return self.parent / name

    def with_suffix(self, suffix: str) -> "RemotePath":
        return self.parent / PurePosixPath(self.name).with_suffix(suffix).name

    def is_relative_to(self, other: "Path | RemotePath") -> bool:
        if not isinstance(other, RemotePath):
            return False
        return self.base == other.base and self.parts[: len(other.parts)] == other.parts

    def relative_to(self, other: "Path | RemotePath") -> PurePosixPath:
        if not isinstance(other, RemotePath) or not self.is_relative_to(other):
            raise ValueError(f"{self} is not below {other}")
        return PurePosixPath(*self.parts[len(other.parts) :])

    def absolute(self) -> "RemotePath":
        return self

    # ----------------------------------------------------------------------------------------------------- reading

    def stat(self) -> Status:
        """Size and time of a file, as the listing that it comes from gave it, else asked for now.

        Raises:
            FileNotFoundError: there is none.
            Unreachable: nothing is known, as from all methods that follow.
        """
        if self.status is not None:
            return self.status
        found = self._ask(lambda files, path: files.info(path))
        if found.get("type", "file") != "file":
            raise FileNotFoundError(errno.ENOENT, "is no file", str(self))
        if found.get("size") is None:
            raise Unreachable(errno.ENOTCONN, "the server does not give its length", str(self))
        return _status(found)

    def is_file(self) -> bool:
        if self.status is not None:
            return True
        try:
            found = self._ask(lambda files, path: files.info(path))
        except FileNotFoundError:
            return False
        # a web server answers to the name of a folder with a page
        return bool(found.get("type", "file") == "file" and found.get("mimetype") != "text/html")

    def is_file_by_name(self) -> bool:
        """Whether it is a file; of a web server, which has pages for folders, by whether its name has an ending."""
        return bool(self.suffix) if self.protocol in _WEB else self.is_file()

    def is_dir(self) -> bool:
        """Whether anything lies below; a web server that does not list its files cannot tell, so there it may."""
        return self.protocol in _WEB or bool(self._ask(lambda files, path: files.isdir(path)))

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        return False

    def names(self) -> list[str]:
        """Names of what lies in a folder, sorted; none where it is not there."""
        return sorted({parts[0] for parts, _ in self._below(1, folders=True)})

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Files below that match, as `pathlib` has it; `**` stands for any number of folders. They know their status."""
        wanted = PurePosixPath(pattern).parts
        fixed = 0
        while fixed < len(wanted) - 1 and not any(mark in wanted[fixed] for mark in "*?["):
            fixed += 1
        start = self / "/".join(wanted[:fixed])
        if fixed == len(wanted) - 1 and not any(mark in wanted[fixed] for mark in "*?["):
            if (one := start / wanted[fixed]).is_file():
                yield one
            return
        wanted = wanted[fixed:]
        for parts, status in start._below(None if "**" in wanted else len(wanted)):
            if _fits(parts, wanted):
                yield replace(start, parts=(*start.parts, *parts), status=status)

    def open(self, mode: str = "rb", buffering: int = _BUFFER) -> io.BufferedReader:
        """The file for reading at any place; as many bytes as the buffer has are fetched at a time."""
        if mode != "rb":
            raise ValueError(f"{self} is open for reading alone, not '{mode}'")
        return io.BufferedReader(RemoteFile(self.stat().st_size, self._range, str(self)), buffering)

    def _range(self, start: int, size: int) -> bytes:
        length = self.stat().st_size

        def fetched(files: Any, path: str) -> bytes:
            # by fsspec's own file, since `cat_file` takes what a server without ranges sends for a range of it
            with files.open(path, "rb", size=length, block_size=size, cache_type="none") as file:
                file.seek(start)
                return bytes(file.read(size))

        return self._ask(fetched)

    def read_bytes(self) -> bytes:
        return bytes(self._ask(lambda files, path: files.cat_file(path)))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def read_at(self, start: int, size: int) -> bytes:
        """At most `size` bytes from byte `start` on."""
        size = min(size, self.stat().st_size - start)
        if size <= 0:
            return b""
        return bytes(self._ask(lambda files, path: files.cat_file(path, start=start, end=start + size)))

    def copy_to(self, target: Path) -> None:
        """Copies the file to this machine, over what is there."""
        self._ask(lambda files, path: files.get_file(path, str(target)))

    # ----------------------------------------------------------------------------------------------------- writing

    def check_writable(self) -> None:
        """Refuses what only serves files.

        Raises:
            UserError: says which protocols take them.
        """
        if self.protocol not in WRITABLE:
            raise UserError(f"{self} is read-only: give a folder, or a URL of {', '.join(WRITABLE)}")

    def write_bytes(self, data: bytes) -> None:
        """Writes the file, whole or not at all, over what is there."""
        self.check_writable()
        self._ask(lambda files, path: files.pipe_file(path, data))

    def write_new(self, data: bytes) -> bool:
        """Writes the file unless there is one; whether this call did."""
        self.check_writable()
        try:
            self._ask(lambda files, path: files.pipe_file(path, data, mode="create"))
        except FileExistsError:
            return self.read_bytes() == data  # a request whose answer was lost was made twice
        return True

    def write_from(self, local: str, size: int) -> None:
        """Copies a file of this machine here, whole or not at all.

        Raises:
            Unreachable: fewer bytes have come.
        """
        self.check_writable()
        self._ask(lambda files, path: files.put_file(local, path))
        if (found := replace(self, status=None).stat().st_size) != size:
            raise Unreachable(errno.ENOTCONN, f"{found} bytes have come of {size} that were sent", str(self))

    def unlink(self, missing_ok: bool = False) -> None:
        if self.is_file():
            self._ask(lambda files, path: files.rm_file(path))
        elif not missing_ok:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a store has no folders but names with slashes."""
        self.check_writable()

    # ---------------------------------------------------------------------------------------------------- requests

    def _below(self, depth: int | None, folders: bool = False) -> Iterator[tuple[tuple[str, ...], Status | None]]:
        """Names on the way to each file below, no deeper than `depth`, sorted; and what the listing says of it."""
        top = self._path.rstrip("/") + "/"
        try:
            found = self._ask(lambda files, path: files.find(path, maxdepth=depth, withdirs=folders, detail=True))
        except FileNotFoundError:
            return
        listed = []
        for name, info in found.items():
            if not name.startswith(top) or (self.protocol in _WEB and "?" in name):
                continue  # the folder itself, or another order of a server's list
            parts = tuple(part for part in name.removeprefix(top).split("/") if part)
            if parts and (folders or info.get("type", "file") == "file"):
                listed.append((tuple(map(unquote, parts)) if self.protocol in _WEB else parts, info))
        for parts, info in sorted(listed, key=lambda one: one[0]):
            yield parts, None if info.get("size") is None else _status(info)

    @property
    def _path(self) -> str:
        """What fsspec calls this place."""
        return str(fsspec.get_filesystem_class(self.protocol)._strip_protocol(self.address))

    def _store(self) -> Any:
        """The store; fsspec keeps one for a process and its settings. Its listings are never remembered."""
        kind = fsspec.get_filesystem_class(self.protocol)
        return kind(use_listings_cache=False, **kind._get_kwargs_from_urls(self.address))

    def _ask(self, request: Callable[[Any, str], T]) -> T:
        """The answer to a request, which is made again where it fails on the way."""
        for pause in (*PAUSES, None):
            try:
                return request(self._store(), self._path)
            except FileExistsError:
                raise
            except FileNotFoundError as error:
                if not _hides_a_fault(error):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from None
                fault: BaseException = error.__cause__ or error
            except Exception as error:  # every store has errors of its own
                fault = error
            if pause is None or isinstance(fault, PermissionError | NotImplementedError) or _is_refusal(fault):
                break
            time.sleep(pause)
        denied = isinstance(fault, PermissionError)
        told = " ".join(str(fault).split())[:300] or type(fault).__name__
        raise Unreachable(
            errno.ENOTCONN, f"{'access is denied: ' if denied else ''}{without_credentials(told)}", str(self)
        ) from fault


def _status(info: dict[str, Any]) -> Status:
    changed = next((info[key] for key in ("LastModified", "mtime", "created") if info.get(key) is not None), None)
    nanoseconds = int(changed.timestamp() * 1e9) if isinstance(changed, datetime) else 0
    tags = (info.get(key) for key in ("ETag", "etag", "md5Hash", "blob_id", "Last-Modified"))
    return Status(int(info["size"]), nanoseconds, str(next(filter(None, tags), changed or "")))


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether names on the way to a file match a pattern's."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _hides_a_fault(error: FileNotFoundError) -> bool:
    """Whether fsspec calls a web server that did not answer a missing file."""
    cause = error.__cause__
    if isinstance(cause, TimeoutError):
        return True
    return type(cause).__module__.startswith("aiohttp") and getattr(cause, "status", 0) not in (404, 410)


def _is_refusal(error: BaseException) -> bool:
    """Whether asking again helps nobody: there are no credentials, or the request makes no sense to the store."""
    return type(error).__name__ in (
        "NoCredentialsError",
        "PartialCredentialsError",
        "ParamValidationError",
        "ValueError",
    )
