"""Preparing one source from start to end: parts, tasks, manifest."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from vita_audio_pl.data.executors import Executor, LocalExecutor, Report
from vita_audio_pl.data.finish import finish_source
from vita_audio_pl.data.index import Index
from vita_audio_pl.data.prepared import INDEX, Manifest
from vita_audio_pl.data.readers import Part
from vita_audio_pl.data.tokenize import TokenizeJob
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.files import full_disk_is_told
from vita_audio_pl.storage.lease import hold, this_job

Watch = Callable[[str, int], AbstractContextManager[Report]]
"""Source and number of parts to do, to something that is told of progress."""


@contextmanager
def unwatched(source: str, parts: int) -> Iterator[Report]:
    """Tells nobody."""
    yield lambda part, progress, finished: None


def prepare_source(
    job: TokenizeJob, executor: Executor | None = None, watch: Watch = unwatched, most_parts: int | None = None
) -> Manifest | None:
    """Tokenises what is missing of a source and finishes it; kill it anywhere and call it again.

    A part whose shard was deleted or cut is made anew.

    Args:
        job: the source, the codec, and where the shards go.
        executor: runs the tasks; None runs them in this process.
        watch: shows progress.
        most_parts: only so many of the first parts, to try a recipe; asking for all of them later goes on from there.

    Returns:
        The manifest; None where other jobs of an array have parts left, the last of which finishes the source.

    Raises:
        UserError: the corpus is not as its recipe says, nothing of it can be used, or the disk is full.
    """
    executor = executor or LocalExecutor()
    parts = job.reader.parts()[:most_parts]
    if (manifest := finished_manifest(job, parts)) is not None:
        return manifest
    work = f"preparing '{job.source}'"
    with hold(job.out, executor.lease, work, launch=this_job()):
        missing = [part for part in executor.mine(parts) if not job.finished(part)]
        if missing:
            with watch(job.source, len(missing)) as report:
                executor(job, missing, report)
    if not all(map(job.finished, parts)):
        return None
    with hold(job.out, "finish", work, wait=True), full_disk_is_told(job.out, f"'{job.source}'"):
        known = None if missing else finished_manifest(job, parts)
        return known or finish_source(job, parts)


def finished_manifest(job: TokenizeJob, parts: Sequence[Part] | None = None) -> Manifest | None:
    """The manifest of a source that is finished, of all parts or these; None where something is to be done.

    Nothing is written, so that sources on read-only storage, or another person's, can be used.
    """
    parts = job.reader.parts() if parts is None else parts
    if not all(map(job.finished, parts)):
        return None
    try:
        manifest, index = Manifest.load(job.out), Index(job.out / INDEX)
    except UserError:
        return None
    same = [shard.name for shard in manifest.shards] == [f"{job.output_name(part)}.tar" for part in parts]
    return manifest if same and index.crc == manifest.index_crc else None
