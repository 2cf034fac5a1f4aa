"""Where the tasks of preparing a source run: processes of this machine, a Ray cluster, or one share of a job array."""

import logging
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias

from vita_audio_pl.data.options import ExecutorOptions
from vita_audio_pl.data.readers import Part
from vita_audio_pl.data.tokenize import Progress, TokenizeJob
from vita_audio_pl.errors import UserError
from vita_audio_pl.processes import worker_processes

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


_number = 0


def worker_number() -> int:
    """Which of the workers that one machine was given this process is; 0 where there is no other."""
    return _number


def _take_number(numbers: Any) -> None:
    global _number
    _number = numbers.get()


@dataclass(frozen=True)
class LocalExecutor:
    """Processes of this machine; with one worker, this process. A part that fails stops all.

    Attributes:
        workers: processes.
        share, shares: in a job array, which parts are this job's: those whose number is `share` modulo `shares`.
    """

    workers: int = 1
    share: int = 0
    shares: int = 1

    def mine(self, parts: Sequence[Part]) -> Sequence[Part]:
        return parts[self.share :: self.shares]

    @property
    def lease(self) -> str:
        return "prepare" if self.shares == 1 else f"prepare.{self.share}-of-{self.shares}"

    def __call__(self, job: TokenizeJob, parts: Sequence[Part], report: Report) -> None:
        if self.workers == 1:
            for part in parts:
                report(part, run_part(job, part, partial(_unfinished, report, part)), True)
            return
        numbers = multiprocessing.get_context("spawn").SimpleQueue()
        for number in range(self.workers):
            numbers.put(number)
        with worker_processes(self.workers, "spawn", _take_number, numbers) as pool:  # torch's threads survive no fork
            futures = {pool.submit(run_part, job, part): part for part in parts}
            for future in as_completed(futures):
                report(futures[future], future.result(), True)


@dataclass(frozen=True)
class RayExecutor:
    """Tasks on a Ray cluster: that of `RAY_ADDRESS`, or one of this machine alone.

    Attributes:
        workers: tasks at a time.
        gpus_per_worker: GPUs that each takes.
    """

    workers: int = 8
    gpus_per_worker: float = 0.0

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
                raise UserError(f"Ray did not start: {error}; give the command again, or executor=local") from error
        try:
            shared = ray.put(job)
            remote = ray.remote(num_gpus=self.gpus_per_worker, max_retries=3)(run_part)
            waiting: list[Part] = list(reversed(parts))
            running: dict[Any, Part] = {}
            while waiting or running:
                while waiting and len(running) < self.workers:
                    part = waiting.pop()
                    running[remote.remote(shared, part)] = part
                for future in ray.wait(list(running))[0]:
                    report(running.pop(future), _result(ray, future), True)
        finally:
            if started:
                ray.shutdown()


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
        return RayExecutor(options.workers, options.gpus_per_worker)
    return LocalExecutor(options.workers, options.share, options.shares)
