"""Where the tasks of preparing a source run: processes of this machine, a Ray cluster, or one share of a job array."""

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
"""Called with a part, what its task has done so far, and whether it is finished."""


class Executor(Protocol):
    """Runs tasks, all of them or, in a job array, a share."""

    def __call__(self, job: TokenizeJob, parts: Sequence[Part], report: Report) -> None: ...

    def mine(self, parts: Sequence[Part]) -> Sequence[Part]:
        """The parts that this process sees to."""
        ...

    @property
    def lease(self) -> str:
        """Kind of the lease under which those parts are made: jobs of an array work beside one another."""
        ...

    @property
    def workers(self) -> int:
        """Parts that are made at a time."""
        ...


_number = 0


def worker_number() -> int:
    """Which of the workers that one machine was given this process is; 0 where there is no other."""
    return _number


def _take_number(numbers: Any) -> None:
    global _number
    _number = numbers.get()


class PartsFailed(UserError):
    """Parts were given up after all tries; the others are done."""

    def __init__(self, sentence: str, parts: int):
        super().__init__(sentence)
        self.parts = parts


class _Retries:
    """How often each part of a job has failed.

    Args:
        most: tries of a part.
    """

    def __init__(self, job: TokenizeJob, most: int):
        self._job, self._most = job, most
        self._failed: Counter[str] = Counter()
        self._given_up: list[str] = []

    def retry(self, part: Part, why: str) -> bool:
        """Notes that a part has failed; whether it is to be tried again."""
        self._failed[part.name] += 1
        if self._failed[part.name] < self._most:
            log.warning("%s: %s; retrying", part.name, why)
            return True
        note_failed(self._job, part, why, self._failed[part.name])
        self._given_up.append(f"{part.name}: {why}")
        return False

    def attempt(self, part: Part, work: Callable[[], None]) -> bool:
        """Does the work; whether it failed and is to be tried again.

        An error that all parts would meet (a full disk, no codec) goes on.
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
        """Raises `PartsFailed` where parts were given up."""
        if self._given_up:
            tried = f" after {self._most} tries each" if self._most > 1 else ""
            raise PartsFailed(
                f"{len(self._given_up)} of {parts} parts of '{self._job.source}' failed{tried}, the first: "
                f"{self._given_up[0]}; the others are done, and rerun the same command to retry these",
                len(self._given_up),
            )


@dataclass(frozen=True)
class LocalExecutor:
    """Processes of this machine; with one worker, this process. A part that fails does not stop the others.

    Attributes:
        workers: processes.
        share, shares: in a job array, which parts are this job's: those whose number is `share` modulo `shares`.
        tries: of a part that fails.
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
            # a part that made its process die is among those at work then: each of them is tried by itself
            for part in self._in_processes(job, waiting, self.workers, report, tries):
                died = "its process died (out of memory, or a file made a decoder crash)"
                while self._in_processes(job, deque([part]), 1, report, tries) and tries.retry(part, died):
                    pass
        tries.summarise(len(parts))

    def _in_processes(
        self, job: TokenizeJob, waiting: deque[Part], workers: int, report: Report, tries: _Retries
    ) -> list[Part]:
        """Runs parts until none is waiting; returns those that were at work when a process died, which ends it early."""
        numbers = multiprocessing.get_context("spawn").SimpleQueue()
        for number in range(workers):
            numbers.put(number)
        running: dict[Future[Progress], Part] = {}
        try:
            with worker_processes(workers, "spawn", _take_number, numbers) as pool:  # torch's threads survive no fork
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
    """Tasks on a Ray cluster: that of `RAY_ADDRESS`, or one of this machine alone.

    Attributes:
        workers: tasks at a time.
        gpus_per_worker: GPUs that each takes.
        tries: of a part that fails.
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
            except Exception as error:  # Ray raises plain ones
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
    """Runs one task and returns what it has done."""
    latest = Progress()

    def keep(done: Progress) -> None:
        nonlocal latest
        latest = replace(done)
        note(latest)

    job.run(part, keep)
    return latest


def executor_of(options: ExecutorOptions) -> Executor:
    """The executor that the options name. With `slurm`, a job of the array runs its share in processes of its node."""
    options.check()
    if options.name == "ray":
        return RayExecutor(options.workers, options.gpus_per_worker, options.tries)
    return LocalExecutor(options.workers, options.share, options.shares, options.tries)
