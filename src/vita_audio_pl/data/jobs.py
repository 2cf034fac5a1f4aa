"""Progress of a preparation: its parts, the jobs that work on them, and the parts that failed.

Kept in hidden files beside the shards: `.parts.json` names the outputs of all parts, `.job-<lease>.json` has a job's
progress, `.failed-<output>.json` why a part failed. Only `data status` reads them; no decision depends on them.
"""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from vita_audio_pl.data.readers import Part
from vita_audio_pl.data.tokenize import Progress, TokenizeJob
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import read_sealed, write_sealed
from vita_audio_pl.storage.places import Place, names_in

PARTS, JOB, FAILED = ".parts.json", ".job-", ".failed-"
_SECONDS = 15.0  # between two updates of a job with long parts


@dataclass(frozen=True)
class JobState:
    """Progress of one job.

    Attributes:
        lease: kind of the lease that it holds while running.
        host, pid: the process.
        workers: parts processed at a time.
        parts: parts to do at its start; `done` and `failed`: those that have ended.
        samples, skipped: samples written and left out.
        seconds: audio processed, seconds.
        started, updated: seconds since 1970.
        ended: whether it has finished.
    """

    lease: str
    host: str
    pid: int
    workers: int
    parts: int
    done: int = 0
    failed: int = 0
    samples: int = 0
    skipped: int = 0
    seconds: float = 0.0
    started: float = 0.0
    updated: float = 0.0
    ended: bool = False

    @property
    def running(self) -> int:
        """Parts in progress."""
        return 0 if self.ended else min(self.workers, self.parts - self.done - self.failed)

    @property
    def elapsed(self) -> float:
        """Seconds since its start."""
        return max(self.updated - self.started, 1e-3)

    def __str__(self) -> str:
        hours = self.seconds / 3600
        speed = f", {hours:.2f} h of audio at {hours / self.elapsed * 3600:.1f} h an hour" if hours else ""
        failed = f", {self.failed} failed" if self.failed else ""
        return (
            f"{self.lease} on {self.host}: {self.done} of {self.parts} parts in {self.elapsed / 60:.1f} min, "
            f"{self.samples} samples{speed}, {self.skipped} left out{failed}"
        )


class JobNotes:
    """A `Report` for the executors that stores the job's state beside the shards and forwards every call.

    Args:
        job: the source.
        lease: kind of the job's lease.
        workers: parts processed at a time.
        parts: number of parts to do.
        report: `Report` that the calls are forwarded to.
    """

    def __init__(self, job: TokenizeJob, lease: str, workers: int, parts: int, report: Any):
        self._path = job.out / f"{JOB}{lease}.json"
        self._report = report
        self._of: dict[str, Progress] = {}
        now = time.time()
        self.state = JobState(lease, socket.gethostname(), os.getpid(), workers, parts, started=now, updated=now)
        self._write()

    def __call__(self, part: Part, progress: Progress, finished: bool) -> None:
        self._report(part, progress, finished)
        self._of[part.name] = replace(progress)
        self.state = replace(self.state, done=self.state.done + finished)
        if finished or abs(time.time() - self.state.updated) > _SECONDS:  # a clock may go back
            self._write()

    def close(self, failed: int) -> None:
        """Mark the job as ended."""
        self.state = replace(self.state, failed=failed, ended=True)
        self._write()

    def _write(self) -> None:
        samples, skipped, seconds = (
            sum(getattr(one, name) for one in self._of.values()) for name in ("samples", "skipped", "seconds")
        )
        self.state = replace(self.state, samples=samples, skipped=skipped, seconds=seconds, updated=time.time())
        write_sealed(self._path, {"format": 1, **asdict(self.state)})


def note_parts(job: TokenizeJob, parts: Sequence[Part]) -> None:
    """Record the outputs that the source will have."""
    write_sealed(
        job.out / PARTS, {"format": 1, "source": job.source, "outputs": [job.output_name(part) for part in parts]}
    )


def note_failed(job: TokenizeJob, part: Part, why: str, tries: int) -> None:
    """Record why a part failed, and after how many tries."""
    name = f"{FAILED}{job.output_name(part)}.json"
    write_sealed(
        job.out / name, {"format": 1, "part": part.name, "why": why, "tries": tries, "host": socket.gethostname()}
    )


def outputs_of(folder: Place) -> list[str]:
    """Names of the outputs that a source will have; empty if its preparation has not started."""
    found = _read(folder, PARTS)
    return [str(name) for name in found.get("outputs", [])]


def jobs_of(folder: Place, names: Sequence[str] | None = None) -> list[JobState]:
    """States of all jobs that have worked on a source.

    Args:
        names: listing of the folder, if known.
    """
    names = names_in(folder) if names is None else names
    found = (_read(folder, name) for name in names if name.startswith(JOB))
    states = []
    for values in found:
        with suppress(TypeError):  # written by another version
            states.append(JobState(**{name: value for name, value in values.items() if name != "format"}))
    return sorted(states, key=lambda state: state.lease)


def failures_of(folder: Place, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Output and record of each failed part; it may have succeeded in a later run."""
    for name in names:
        if name.startswith(FAILED):
            yield name.removeprefix(FAILED).removesuffix(".json"), _read(folder, name)


def _read(folder: Place, name: str) -> dict[str, Any]:
    try:
        return read_sealed(folder / name)
    except (FileNotFoundError, NotADirectoryError, UserError):
        return {}
