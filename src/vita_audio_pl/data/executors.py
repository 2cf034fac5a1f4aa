"""Where preparation tasks run: processes on this machine, a Ray cluster, or one share of a job array."""

import logging
import multiprocessing
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from vita_audio_pl.child_processes import worker_processes
from vita_audio_pl.data.jobs import note_failed
from vita_audio_pl.data.options import ExecutorOptions
from vita_audio_pl.data.readers import Part
from vita_audio_pl.data.tokenize import Progress, TokenizeJob
from vita_audio_pl.errors import UserError, is_machine_fault

log = logging.getLogger(__name__)

Report: TypeAlias = Callable[[Part, Progress, bool], None]
"""Called with a part, its progress, and whether it is finished."""


class Executor(Protocol):
    """Runs all tasks or, in a job array, its share of them."""

    def __call__(self, job: TokenizeJob, parts: Sequence[Part], report: Report) -> None: ...

    def mine(self, parts: Sequence[Part]) -> Sequence[Part]:
        """The parts that this process is responsible for."""
        ...

    @property
    def lease(self) -> str:
        """Kind of the lease under which the parts are made: jobs of an array work at the same time."""
        ...

    @property
    def workers(self) -> int:
        """Number of parts that are processed at a time."""
        ...


_number = 0


def worker_number() -> int:
    """Index of this process among the workers on its machine; 0 if it is the only one."""
    return _number


def _take_number(numbers: Any) -> None:
    global _number
    _number = numbers.get()


class PartsFailed(UserError):
    """Some parts failed in every try; the others are done."""

    def __init__(self, sentence: str, parts: int):
        super().__init__(sentence)
        self.parts = parts


class _Retries:
    """Counts the failures of each part.

    Args:
        most: tries per part.
    """

    def __init__(self, job: TokenizeJob, most: int):
        self._job, self._most = job, most
        self._failed: Counter[str] = Counter()
        self._given_up: list[str] = []

    def retry(self, part: Part, why: str) -> bool:
        """Record a failure; returns whether the part should be tried again."""
        self._failed[part.name] += 1
        if self._failed[part.name] < self._most:
            log.warning("%s: %s; retrying", part.name, why)
            return True
        note_failed(self._job, part, why, self._failed[part.name])
        self._given_up.append(f"{part.name}: {why}")
        return False

    def attempt(self, part: Part, work: Callable[[], None]) -> bool:
        """Run the work; returns whether it failed and should be tried again.

        Errors that every part would hit (full disk, no codec) are raised.
        """
        try:
            work()
        except (UserError, BrokenProcessPool):
            raise
        except Exception as error:
            if is_machine_fault(error):
                raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{type(error).__name__}: {error!s:.300} ({Path(frame.filename).name}:{frame.lineno})"
            return self.retry(part, why)
        return False

    def summarise(self, parts: int) -> None:
        """Raise `PartsFailed` if any part failed in every try."""
        if self._given_up:
            tried = f" after {self._most} tries each" if self._most > 1 else ""
            raise PartsFailed(
                f"{len(self._given_up)} of {parts} parts of '{self._job.source}' failed{tried}, the first: "
                f"{self._given_up[0]}; the others are done, and rerun the same command to retry these",
                len(self._given_up),
            )


@dataclass(frozen=True)
class LocalExecutor:
    """Processes on this machine; with one worker, this process itself. A failing part does not stop the others.

    Attributes:
        workers: number of processes.
        share, shares: in a job array, this job handles the parts whose number is `share` modulo `shares`.
        tries: tries per part.
    """

    workers: int = 1
    share: int = 0
    shares: int = 1
    tries: int = 1

    def mine(self, parts: Sequence[Part]) -> Sequence[Part]:
        return parts[self.share :: self.shares]

    @property
    def lease(self) -> str:
        return "prepare" if self.shares == 1 else f"prepare.{self.share}-of-{self.shares}"

    def __call__(self, job: TokenizeJob, parts: Sequence[Part], report: Report) -> None:
        tries, waiting = _Retries(job, self.tries), deque(parts)
        while waiting and self.workers == 1:
            part = waiting.popleft()
            make = partial(run_part, job, part, partial(_unfinished, report, part))
            if tries.attempt(part, partial(_report_result, report, part, make)):
                waiting.append(part)
        while waiting:
            # one of the parts in progress crashed its process: each of them is retried by itself
            for part in self._in_processes(job, waiting, self.workers, report, tries):
                died = "its process died (out of memory, or a file made a decoder crash)"
                while self._in_processes(job, deque([part]), 1, report, tries) and tries.retry(part, died):
                    pass
        tries.summarise(len(parts))

    def _in_processes(
        self, job: TokenizeJob, waiting: deque[Part], workers: int, report: Report, tries: _Retries
    ) -> list[Part]:
        """Run parts until none is waiting; returns early, with the parts in progress, if a process dies."""
        numbers = multiprocessing.get_context("spawn").SimpleQueue()
        for number in range(workers):
            numbers.put(number)
        running: dict[Future[Progress], Part] = {}
        try:
            # torch's threads do not survive fork
            with worker_processes(workers, "spawn", _take_number, numbers) as pool:
                while waiting or running:
                    while waiting and len(running) < workers:
                        running[pool.submit(run_part, job, waiting[0])] = waiting[0]
                        waiting.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        part = running[future]
                        if tries.attempt(part, partial(_report_result, report, part, future.result)):
                            waiting.append(part)
                        del running[future]
        except BrokenProcessPool:
            return list(running.values())
        return []


def _report_result(report: Report, part: Part, result: Callable[[], Progress]) -> None:
    report(part, result(), True)


@dataclass(frozen=True)
class RayExecutor:
    """Tasks on a Ray cluster: the one at `RAY_ADDRESS`, or a local one.

    Attributes:
        workers: number of concurrent tasks.
        gpus_per_worker: GPUs per task.
        tries: tries per part.
    """

    workers: int = 8
    gpus_per_worker: float = 0.0
    tries: int = 1

    def mine(self, parts: Sequence[Part]) -> Sequence[Part]:
        return parts

    @property
    def lease(self) -> str:
        return "prepare"

    def __call__(self, job: TokenizeJob, parts: Sequence[Part], report: Report) -> None:
        if not parts:
            return
        try:
            import ray
        except ImportError as error:
            raise UserError("executor=ray needs Ray: pip install 'vita-audio-pl[ray]'") from error
        started = not ray.is_initialized()
        if started:
            try:
                ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
            except Exception as error:  # Ray raises exceptions of its own
                raise UserError(f"Ray did not start: {error}; rerun the command, or executor=local") from error
        try:
            shared = ray.put(job)
            remote = ray.remote(num_gpus=self.gpus_per_worker, max_retries=3)(run_part)
            waiting: list[Part] = list(reversed(parts))
            running: dict[Any, Part] = {}
            tries = _Retries(job, self.tries)
            while waiting or running:
                while waiting and len(running) < self.workers:
                    part = waiting.pop()
                    running[remote.remote(shared, part)] = part
                for future in ray.wait(list(running))[0]:
                    part = running.pop(future)
                    if tries.attempt(part, partial(_report_result, report, part, partial(_result, ray, future))):
                        waiting.insert(0, part)
        finally:
            if started:
                ray.shutdown()
        tries.summarise(len(parts))


def _result(ray: Any, future: Any) -> Progress:
    try:
        progress: Progress = ray.get(future)
        return progress
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, UserError) else error from error


def _unfinished(report: Report, part: Part, done: Progress) -> None:
    report(part, done, False)


def run_part(job: TokenizeJob, part: Part, note: Callable[[Progress], None] = lambda done: None) -> Progress:
    """Run one task and return its final progress."""
    latest = Progress()

    def keep(done: Progress) -> None:
        nonlocal latest
        latest = replace(done)
        note(latest)

    job.run(part, keep)
    return latest


def executor_of(options: ExecutorOptions) -> Executor:
    """The executor that the options select. With `slurm`, each job of the array runs its share in local processes."""
    options.check()
    if options.name == "ray":
        return RayExecutor(options.workers, options.gpus_per_worker, options.tries)
    return LocalExecutor(options.workers, options.share, options.shares, options.tries)
