"""Preparing one source from start to end: recipe, tasks, manifest."""

from collections.abc import Callable, Sequence

from vita_audio_pl.data.executors import Report, run_local
from vita_audio_pl.data.finish import finish_source
from vita_audio_pl.data.prepared import MANIFEST, Manifest
from vita_audio_pl.data.readers import Part
from vita_audio_pl.data.tokenize import TokenizeJob

Executor = Callable[[TokenizeJob, Sequence[Part], Report], None]


def silent(part: Part, progress: object, finished: bool) -> None:
    """Reports nothing."""


def prepare_source(job: TokenizeJob, executor: Executor | None = None, report: Report = silent) -> Manifest:
    """Tokenises what is missing of a source and finishes it; kill it anywhere and call it again.

    Args:
        job: the source, the codec, and where the shards go.
        executor: runs the tasks; None runs them in this process.
        report: told of progress.

    Raises:
        UserError: the corpus is not as its recipe says, nothing of it can be used, or the disk is full.
    """
    parts = job.reader.parts()
    missing = [part for part in parts if not job.done_file(part).is_file()]
    if not missing and (job.out / MANIFEST).is_file():
        manifest = Manifest.load(job.out)
        if [shard.name for shard in manifest.shards] == [f"{job.output_name(part)}.tar" for part in parts]:
            return manifest
    if executor is None:
        run_local(job, missing, 1, report)
    else:
        executor(job, missing, report)
    return finish_source(job, parts)
