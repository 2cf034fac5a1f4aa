"""Prepare one source: parts, tasks, manifest."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from vita_audio_pl.data.executors import Executor, LocalExecutor, PartsFailed, Report
from vita_audio_pl.data.finish import finish_source, leftovers
from vita_audio_pl.data.index import Index
from vita_audio_pl.data.jobs import JobNotes, jobs_of, note_parts
from vita_audio_pl.data.left_out import LeftOutCounts
from vita_audio_pl.data.merge import planned_shards
from vita_audio_pl.data.outputs import TAR, Outputs
from vita_audio_pl.data.prepared import INDEX, MANIFEST, SKIPPED, SOURCE, Manifest, verify_source
from vita_audio_pl.data.readers import Part
from vita_audio_pl.data.readers.base import Stamp, files_matching, stamp_of
from vita_audio_pl.data.readers.sides import SideReader
from vita_audio_pl.data.speaking.reader import SpeakingReader
from vita_audio_pl.data.tokenize import TokenizeJob
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import CHECKSUMS
from vita_audio_pl.storage.files import explain_full_disk
from vita_audio_pl.storage.lease import hold, this_job
from vita_audio_pl.storage.owned import Owned
from vita_audio_pl.storage.places import Place, relative

log = logging.getLogger(__name__)

ShowProgress = Callable[[str, int], AbstractContextManager[Report]]
"""Called with source and number of parts; returns a callback that shows progress."""


@contextmanager
def no_progress(source: str, parts: int) -> Iterator[Report]:
    """Shows nothing."""
    yield lambda part, progress, finished: None


def prepare_source(
    job: TokenizeJob,
    executor: Executor | None = None,
    watch: ShowProgress = no_progress,
    most_parts: int | None = None,
    prune: bool = False,
    tell: Callable[[str], None] = print,
) -> Manifest | None:
    """Tokenise what is missing of a source and finish it; it can be killed at any time and called again.

    Parts whose shard was deleted or truncated are made again. If an earlier command found too much left out, so are the
    parts that lost too much, since their missing files may be there now.

    Args:
        job: the source, the codec, and where the shards go.
        executor: runs the tasks; None runs them in this process.
        watch: shows progress.
        most_parts: only the first parts, to try a recipe; a later call for all parts continues from there, and a source
            that already has more of them is not changed.
        prune: remove shards that no part uses any more; otherwise they are only listed.
        tell: receives sentences on such shards, and on files that may have been edited.

    Returns:
        The manifest; None if other jobs of an array have parts left, the last of which finishes the source.

    Raises:
        UserError: the corpus is not as its recipe says, nothing of it is usable, the disk is full, the folder holds
            something else, or a trial would replace a larger source.
    """
    executor = executor or LocalExecutor()
    before = _stamps(job)
    claimed = job.reader.parts()
    parts = claimed[:most_parts]
    manifest = _as_asked(job, parts)
    if manifest is None:
        Owned.claim(job.out, SOURCE)
        if len(parts) < len(claimed) and (known := _instead_of_a_trial(job, parts)):
            return known
        manifest = _make(job, parts, executor, watch, tell, {**_stamps(job, parts), **before})
        if manifest is not None and len(jobs := jobs_of(job.out)) > 1:
            for state in jobs:  # in an array, the last job reports them
                tell(str(state))
    if manifest is not None:
        with hold(job.out, "finish", f"pruning '{job.source}'", wait=True) if prune else nullcontext():
            for sentence in leftovers(job, claimed, prune):
                tell(sentence)
    return manifest


def _make(
    job: TokenizeJob,
    parts: Sequence[Part],
    executor: Executor,
    watch: ShowProgress,
    tell: Callable[[str], None],
    stamps: Mapping[str, Stamp | None],
) -> Manifest | None:
    """Make the missing `parts`; returns the manifest once all of them exist, whoever made them.

    Args:
        stamps: of the corpus's files, from before the parts were planned: what was read of a file that has another one
            now may be another's.

    Raises:
        UserError: a file has changed since; what this process has made of it is given up.
    """
    work = f"preparing '{job.source}'"
    with hold(job.out, executor.lease, work, launch=this_job()):
        mine = executor.mine(parts)
        if finished_manifest(job, parts) is None:
            _take_up_again(job, mine)
        missing = _unfinished(job, mine)
        changed: list[str] = []
        try:
            if missing:
                _work(job, parts, missing, executor, watch)
        finally:  # also where parts failed, perhaps because of it
            changed += [name for name, stamp in _stamps(job, parts).items() if stamps[name] != stamp]
            if changed:
                spoilt = {job.output_name(part) for part in missing if part.where.get("path") in changed}
                Outputs.find(job.out).give_up(spoilt)
    if changed:
        raise UserError(
            f"{changed[0]} was changed while '{job.source}' was prepared: rerun the same command once it stays as it is; parts of "
            "other files are kept"
        )
    if _unfinished(job, parts):
        return None
    with hold(job.out, "finish", work, wait=True), explain_full_disk(job.out, f"'{job.source}'"):
        known = None if missing else _as_asked(job, parts, log.warning)
        return known or finish_source(job, parts, tell)


def _stamps(job: TokenizeJob, parts: Sequence[Part] | None = None) -> dict[str, Stamp | None]:
    """Of the files on this machine that the parts name, time of the last change and size; before there are parts, of
    the files that the reader will find.
    """
    reader = job.reader
    while isinstance(reader, SpeakingReader | SideReader):
        reader = reader.reader
    root = getattr(reader, "root", None)
    if not isinstance(root, Path):
        return {}
    if parts is not None:
        names = dict.fromkeys(str(part.where["path"]) for part in parts if "path" in part.where)
        return {name: stamp_of(root / name) for name in names}
    with suppress(UserError):  # the reader itself says what is wrong
        found = files_matching(root, getattr(reader, "files", ()))
        return {relative(path, root).as_posix(): stamp_of(path) for path in found}
    return {}


def _unfinished(job: TokenizeJob, parts: Sequence[Part]) -> list[Part]:
    missing = set(Outputs.find(job.out).unfinished(map(job.output_name, parts)))
    return [part for part in parts if job.output_name(part) in missing]


def _work(
    job: TokenizeJob, parts: Sequence[Part], missing: Sequence[Part], executor: Executor, watch: ShowProgress
) -> None:
    """Make parts and store the progress beside them."""
    failed = 0
    # the notes are written at the end, too, when a full disk may already have stopped the work
    with explain_full_disk(job.out, f"'{job.source}'"), watch(job.source, len(missing)) as report:
        note_parts(job, parts)
        notes = JobNotes(job, executor.lease, executor.workers, len(missing), report)
        try:
            executor(job, missing, notes)
        except PartsFailed as error:
            failed = error.parts
            raise
        finally:
            notes.close(failed)


def _take_up_again(job: TokenizeJob, parts: Sequence[Part]) -> None:
    """After a command that found too much left out: mark the parts that lost too much to be made again.

    That command wrote `skipped.jsonl` without a manifest. A killed command wrote neither, and nothing is marked.
    """
    if not (job.out / SKIPPED).is_file():
        return
    outputs, mine = Outputs.find(job.out), Owned.open(job.out, SOURCE)
    done = [name for name in map(job.output_name, parts) if name in outputs.parts]
    outputs.give_up({name for name in done if LeftOutCounts.of(outputs.reports([name])).share > job.max_skipped})
    mine.remove(SKIPPED)


def _instead_of_a_trial(job: TokenizeJob, parts: Sequence[Part]) -> Manifest | None:
    """The existing manifest, if it already has all of `parts`; None if a trial would replace nothing."""
    try:
        there = Manifest.load(job.out)
    except UserError:
        return None
    inside = Outputs.find(job.out).inside
    shards = [shard.name.removesuffix(TAR) for shard in there.shards]
    names, wanted = {name for stem in shards for name in inside.get(stem, (stem,))}, {*map(job.output_name, parts)}
    if wanted <= names:
        return there
    if not names <= wanted:
        raise UserError(
            f"'{job.source}' is prepared in {job.out} from other data, or with another codec or tokenizer, and parts="
            f"{len(parts)} would put a trial in its place: give another shards=DIR, or leave parts out"
        )
    return None


def withdraw(folder: Place) -> None:
    """Takes the manifest from a source, if it has one: no training uses it any more."""
    if (folder / MANIFEST).is_file():
        Owned.claim(folder, SOURCE).remove(MANIFEST)


def _as_asked(job: TokenizeJob, parts: Sequence[Part], tell: Callable[[str], None] | None = None) -> Manifest | None:
    """`finished_manifest`, unless the requested shard size differs."""
    outputs = Outputs.find(job.out)
    manifest = finished_manifest(job, parts, tell, outputs)
    if manifest is None:
        return None
    planned = planned_shards([job.output_name(part) for part in parts], outputs, job.shard_bytes)
    return manifest if [shard.name.removesuffix(TAR) for shard in manifest.shards] == list(planned) else None


def finished_manifest(
    job: TokenizeJob,
    parts: Sequence[Part] | None = None,
    tell: Callable[[str], None] | None = None,
    outputs: Outputs | None = None,
) -> Manifest | None:
    """The manifest of a finished source, of all parts or of `parts`; None if anything is left to do.

    Index, manifest and shards must match each other and their checksums; how parts are grouped into shards does
    not matter. Nothing is written, so that sources on read-only storage can be used.

    Args:
        tell: receives the sentence about a damaged source, from a caller that will repair it.
        outputs: the finished outputs, if known.
    """
    names = [job.output_name(part) for part in (job.reader.parts() if parts is None else parts)]
    outputs = outputs or Outputs.find(job.out)
    if outputs.unfinished(names):
        return None
    try:
        manifest, index = Manifest.load(job.out), Index(job.out / INDEX)
        if not (job.out / CHECKSUMS).is_file():
            return None
        verify_source(job.out, manifest, with_audio=True)
    except UserError as damage:
        if tell is not None and names:  # an empty corpus has no parts
            tell(f"{job.out} is made again: {damage}")
        return None
    stems = (shard.name.removesuffix(TAR) for shard in manifest.shards)
    same = [name for stem in stems for name in outputs.inside.get(stem, ())] == names
    return manifest if same and index.crc == manifest.index_crc else None
