"""Where the tasks of preparing a source run: this process, or several of this machine."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from typing import TypeAlias

from vita_audio_pl.data.readers import Part
from vita_audio_pl.data.tokenize import Progress, TokenizeJob

Report: TypeAlias = Callable[[Part, Progress, bool], None]
"""Called with a part, what its task has done so far, and whether it is finished."""


def run_here(job: TokenizeJob, parts: Sequence[Part], report: Report) -> None:
    """One part after another in this process."""
    for part in parts:
        latest = Progress()

        def note(done: Progress, part: Part = part) -> None:
            nonlocal latest
            latest = replace(done)
            report(part, latest, False)

        job.run(part, note)
        report(part, latest, True)


def run_local(job: TokenizeJob, parts: Sequence[Part], workers: int, report: Report) -> None:
    """Parts shared out to `workers` processes of this machine; a part that fails stops all."""
    if workers <= 1:
        run_here(job, parts, report)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(_run_counted, job, part): part for part in parts}
        try:
            for future in as_completed(futures):
                report(futures[future], future.result(), True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _run_counted(job: TokenizeJob, part: Part) -> Progress:
    latest = Progress()

    def note(done: Progress) -> None:
        nonlocal latest
        latest = replace(done)

    job.run(part, note)
    return latest
