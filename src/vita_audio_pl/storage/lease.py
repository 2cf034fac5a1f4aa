"""Leases: one writer at a time in a folder, across processes and nodes, on file systems without locks between nodes.

A lease is a small file in the folder, `.lease-<kind>-<number>`, which names its holder and whose modification time is
the holder's heartbeat. It is created under a new name, which is atomic on shared file systems too, numbered one above
the
stale lease that it replaces: so of all who find the same stale lease, one succeeds. The holder then
looks again, and gives way if it finds a lease that it did not know. Nothing is locked, and reading needs no lease.

In a store, where file times cannot be set, the heartbeat is the file rewritten with a higher number, and the
holder counts as dead once a waiting process has seen the same number for `SILENT` seconds.
"""

import json
import os
import random
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.files import atomic_write, create_new
from vita_audio_pl.storage.places import Place, names_in
from vita_audio_pl.storage.remote import RemotePath

PREFIX = ".lease-"
BEAT = 15.0
"""Seconds between two heartbeats."""
SILENT = 300.0
"""Seconds without a heartbeat after which the holder on another machine counts as dead."""
_SECOND_LOOK = 0.1  # seconds after which one who has only tried to take it has given way, and is not who is named
_BEAT = "beat"  # number of the heartbeat, in the lease of a store


class InUse(UserError):
    """Another process works in the folder."""


@dataclass(frozen=True)
class Holder:
    """The holder of a lease.

    Attributes:
        what: what it does there.
        host: name of its machine, for people.
        machine: identity of the kernel and the process namespace, within which `pid` means something.
        pid, born: the process, and when its machine says that it started; a number is used again.
        launch: job that the process belongs to, of which there is one at a time; empty where that is not known.
        since: when it took the lease, in seconds since 1970.
    """

    what: str
    host: str
    machine: str
    pid: int
    born: str
    launch: str
    since: float
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def here(cls, what: str, launch: str = "") -> "Holder":
        """This process."""
        return cls(what, socket.gethostname(), _machine(), os.getpid(), _born(os.getpid()) or "", launch, time.time())

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        job = f", {self.launch}" if self.launch else ""
        return f"{self.what} (process {self.pid} on {self.host}{job}, since {since})"

    @property
    def is_here(self) -> bool:
        """Whether its process can be looked for on this machine."""
        return self.machine == _machine()

    @property
    def lives(self) -> bool:
        """Whether its process runs; only for those that are here."""
        return _born(self.pid) in (self.born, None)


_UNKNOWN = Holder("something that cannot be read", "an unknown machine", "", 0, "", "", 0.0, "")


@contextmanager
def hold(
    folder: Place, kind: str, what: str, *, wait: bool = False, launch: str = "", advice: str = ""
) -> Iterator[None]:
    """Makes this process the only one that holds the lease `kind` of `folder`, which is made if it is not there.

    The lease of a process that has died on this machine is taken over at once, that of another machine once it has been
    silent for `SILENT` seconds. Not for nested use.

    Args:
        what: this process does there, for those who are refused.
        wait: until the holder is done, instead of being refused.
        launch: identity of this process's job where it is the only holder that the job can have: a lease that bears it
            belongs to a process of this job that is dead, though it ran on another node.
        advice: what else one who is refused may do.

    Raises:
        InUse: another process holds it; the sentence says which, where and since when.
        UserError: the folder cannot be written.
    """
    me = Holder.here(what, launch)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = _take(folder, kind, me, wait, advice)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}), and {what} writes there: make room or let this user "
            "write there, or choose another folder"
        ) from error
    done = threading.Event()
    threading.Thread(target=_beat, args=(path, me, done), name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        if os.getpid() == me.pid:  # a forked process may come by here too
            done.set()
            with suppress(OSError):  # what is left is the lease of a dead process
                path.unlink()


def this_job() -> str:
    """The job of a scheduler or of torchrun that this process belongs to; empty where there is none that has an identity."""
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
    if job:
        return f"SLURM job {job}.{step}" if step else f"SLURM job {job}"
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return "" if run == "none" else f"torchrun job {run}"


@dataclass(frozen=True)
class Held:
    """A lease that lies in a folder.

    Attributes:
        kind: of the lease.
        holder: who has it, or had it when it died.
        lives: the holder runs, as far as its machine or its heartbeat tells.
    """

    kind: str
    holder: Holder
    lives: bool


def holders(folder: Place, names: Sequence[str] | None = None) -> list[Held]:
    """All leases of a folder, for people: by the clock of this machine, and nothing is waited for.

    Args:
        names: of what lies in the folder, where they are known.
    """
    found = []
    names = names_in(folder) if names is None else names
    for kind in sorted({name.removeprefix(PREFIX).rpartition("-")[0] for name in names if is_lease(name)}):
        for number, (holder, _) in _leases(folder, kind).items():
            with suppress(FileNotFoundError):
                beat = (folder / f"{PREFIX}{kind}-{number:06d}").stat().st_mtime_ns / 1e9
                lives = holder.lives if holder.is_here else time.time() - beat < SILENT
                found.append(Held(kind, holder, lives))
    return found


def is_lease(name: str) -> bool:
    """Whether a file is a lease, which whoever empties a folder leaves alone: it is that of the process that does so."""
    return name.startswith(PREFIX)


def _take(folder: Place, kind: str, me: Holder, wait: bool, advice: str) -> Place:
    """The lease's file, once this process holds it."""
    beats: dict[str, float] = {}  # the first heartbeat seen of each holder on another machine
    seen: dict[tuple[str, float], float] = {}  # when a heartbeat of each was seen first, by this machine's clock
    told, pause, met = False, 0.05, ""
    while True:
        found = _leases(folder, kind)
        held = [holder for holder, beat in found.values() if not _is_stale(folder, holder, beat, me, seen)]
        if not held:
            path = folder / f"{PREFIX}{kind}-{max(found, default=0) + 1:06d}"
            if _create(path, me):
                there = _leases(folder, kind)
                there.pop(_number(path), None)
                if there.items() <= found.items():  # the same holders, and they are still silent
                    for number in found:
                        with suppress(OSError):  # of another user, perhaps; it is stale and harms nobody
                            path.with_name(f"{PREFIX}{kind}-{number:06d}").unlink()
                    return path
                path.unlink(missing_ok=True)
                time.sleep(random.uniform(0.0, 0.1))
            continue
        holder = held[0]
        beat = next(beat for one, beat in found.values() if one is holder)
        if not wait and holder.is_here and holder.token != met:
            met = holder.token
            time.sleep(_SECOND_LOOK)
            continue
        if not wait and (holder.is_here or beats.setdefault(holder.token, beat) != beat):
            raise InUse(
                f"{folder} is in use by {holder}: wait until that ends, stop it"
                + (f" with 'kill {holder.pid}'" if holder.is_here else "")
                + (f", or {advice}" if advice else "")
            )
        if not told:
            told = True
            until = "" if wait else f" to see whether it still runs; it counts as dead after {SILENT:.0f} s of silence"
            print(f"{folder} is in use by {holder}: waiting{until}", file=sys.stderr, flush=True)
        time.sleep(pause)
        pause = min(5.0 if isinstance(folder, RemotePath) else 1.0, 2 * pause)


def _is_stale(folder: Place, holder: Holder, beat: float, me: Holder, seen: dict[tuple[str, float], float]) -> bool:
    if holder.is_here:
        return not holder.lives
    if me.launch and holder.launch == me.launch:
        return True
    if isinstance(folder, RemotePath):
        return time.monotonic() - seen.setdefault((holder.token, beat), time.monotonic()) > SILENT
    with tempfile.NamedTemporaryFile(
        prefix=f"{PREFIX}clock-", dir=folder
    ) as clock:  # what time the filesystem says it is
        now = os.fstat(clock.fileno()).st_mtime
    if beat > now + BEAT:  # the clock has gone back since: only a further heartbeat tells
        return time.monotonic() - seen.setdefault((holder.token, beat), time.monotonic()) > SILENT
    return now - beat > SILENT


def _leases(folder: Place, kind: str) -> dict[int, tuple[Holder, float]]:
    """Number -> holder and last heartbeat, of all leases of a kind that lie in the folder."""
    found = {}
    for path in (folder / f"{PREFIX}{kind}-{number:06d}" for number in _numbers(folder, kind)):
        try:
            content, beat = _read(path)
            values = json.loads(content)
            beat = values.pop(_BEAT, beat)
            found[_number(path)] = Holder(**values), beat
        except FileNotFoundError:
            continue  # its holder has just finished
        except (ValueError, TypeError, AttributeError):
            found[_number(path)] = _UNKNOWN, beat  # just being written, or damaged: its heartbeat decides
    return found


def _numbers(folder: Place, kind: str) -> list[int]:
    names = (name.removeprefix(f"{PREFIX}{kind}-") for name in names_in(folder) if is_lease(name))
    return sorted(int(name) for name in names if name.isdecimal())


def _read(path: Place) -> tuple[bytes, float]:
    """What a lease holds, and the time of its last change."""
    if isinstance(path, RemotePath):
        return path.read_bytes(), 0.0
    with open(path, "rb") as file:  # opened, since network filesystems then ask how old it is
        beat = os.fstat(
            file.fileno()
        ).st_mtime  # first: a lease that is being written has not the time of the whole one
        return file.read(), beat


def _number(path: Place) -> int:
    return int(path.name.rpartition("-")[2])


def _content(holder: Holder, **more: int) -> bytes:
    return json.dumps({**asdict(holder), **more}, ensure_ascii=False).encode()


def _create(path: Place, holder: Holder) -> bool:
    """Whether this process was the one to create the file."""
    return create_new(path, _content(holder, **({_BEAT: 0} if isinstance(path, RemotePath) else {})))


def _beat(path: Place, holder: Holder, done: threading.Event) -> None:
    number = 0
    while not done.wait(BEAT):
        number += 1
        try:
            if not isinstance(path, RemotePath):
                os.utime(path)
            elif _is_last(path):
                atomic_write(path, _content(holder, **{_BEAT: number}))
                if done.is_set():  # it was given up while this was on its way
                    path.unlink(missing_ok=True)
            else:
                raise FileNotFoundError(path)
        except FileNotFoundError:
            if not done.is_set():
                print(
                    f"error: the lease {path} is gone: another process considered this one dead, or the folder was removed; "
                    "leaving at once, since only one may write there",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
        except OSError:
            continue  # storage that does not answer may come back


def _is_last(path: RemotePath) -> bool:
    """Whether a lease is still there, and none of its kind has followed it."""
    follower = path.with_name(f"{path.name.rpartition('-')[0]}-{_number(path) + 1:06d}")
    return path.is_file() and not follower.is_file()  # a store with many shards takes long to list


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return socket.gethostname()


def _born(pid: int) -> str | None:
    """When a process started, in its machine's own count; empty if it does not run, None if that is hidden from us."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if after_name[0] in "ZX" else after_name[19]
    except OSError:
        pass
    try:
        return str(round(psutil.Process(pid).create_time()))
    except psutil.NoSuchProcess:
        return None if psutil.pid_exists(pid) else ""
    except psutil.AccessDenied:
        return None
