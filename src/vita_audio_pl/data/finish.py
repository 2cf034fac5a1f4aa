"""The end of preparing a source: all parts' indexes joined, one manifest, one report; and what is left of other times."""

import json
from collections.abc import Iterator, Sequence

import numpy as np

from vita_audio_pl.data.card import card_of
from vita_audio_pl.data.clips import AUDIO_INDEX
from vita_audio_pl.data.index import merge_indexes
from vita_audio_pl.data.jobs import FAILED
from vita_audio_pl.data.left_out import LeftOutCounts
from vita_audio_pl.data.prepared import CARDS, INDEX, PART_FILES, SKIPPED, SOURCE, Manifest, ShardFile
from vita_audio_pl.data.readers import Part
from vita_audio_pl.data.tokenize import TokenizeJob
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import FileSum, read_sealed
from vita_audio_pl.storage.copies import on_this_machine
from vita_audio_pl.storage.files import atomic_write, write_array, write_json
from vita_audio_pl.storage.owned import Owned
from vita_audio_pl.storage.places import names_in


def finish_source(job: TokenizeJob, parts: Sequence[Part]) -> Manifest:
    """Makes a prepared source of finished parts; doing it again changes nothing.

    Every sample that cannot be used is named in `skipped.jsonl`, with its reason, and some that are not wanted. Files of parts that are not asked for stay.

    Raises:
        UserError: a part is not finished, no sample at all could be used, or more were left out than may be.
    """
    missing = job.unfinished(parts)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(parts)} parts of '{job.source}' are not finished (the first: {missing[0].name}); "
            "give the same prepare command again"
        )
    reports = job.reports(parts)
    lines = (json.dumps(culprit, ensure_ascii=False) + "\n" for report in reports for culprit in report["culprits"])
    atomic_write(job.out / SKIPPED, "".join(lines).encode("utf-8", "backslashreplace"))
    counts = LeftOutCounts.of(reports)
    if counts.too_many(job.max_skipped):
        raise UserError(counts.sentence(job.source, job.max_skipped, job.out / SKIPPED))
    names = [job.output_name(part) for part in parts]
    with on_this_machine([job.out / f"{name}.index" for name in names]) as indexes:
        index_crc = merge_indexes(indexes, job.out / INDEX)
    manifest = Manifest(
        source=job.source,
        task=job.task,
        tokenizer=job.tokenizer.fingerprint,
        codec=job.codec,
        samples=sum(report["shard"]["samples"] for report in reports),
        seconds=round(sum(report["seconds"] for report in reports), 3),
        text_tokens=sum(report["text_tokens"] for report in reports),
        codes=sum(report["codes"] for report in reports),
        shards=tuple(ShardFile(**report["shard"]) for report in reports),
        index_crc=index_crc,
        audio_shards=tuple(ShardFile(**report["audio_shard"]) for report in reports if "audio_shard" in report),
        report={
            "skipped": dict(counts.reasons),
            "filtered": dict(counts.filtered),
            "unread": counts.unread,
            "parts": len(parts),
            "speakers": len({speaker for report in reports for speaker in report.get("speakers", ())}),
            "about": dict(job.about),
        },
    )
    if job.placeholders is not None:
        with on_this_machine([job.out / f"{name}.audio.npy" for name in names]) as arrays:
            write_array(job.out / AUDIO_INDEX, np.concatenate([np.load(path) for path in arrays]))
    mine = Owned.claim(job.out, SOURCE)
    mine.remove_abandoned()
    mine.remove(*(name for name in names_in(job.out) if name.startswith(FAILED)))
    card = card_of(manifest)
    write_json(job.out / CARDS[1], card.to_json())
    atomic_write(job.out / CARDS[0], card.to_markdown().encode("utf-8", "backslashreplace"))
    sums = {name: FileSum.from_json(value) for report in reports for name, value in report["sums"].items()}
    manifest.save(job.out, sums)  # last: what a manifest stands beside is clean as well as whole
    return manifest


def leftovers(job: TokenizeJob, claimed: Sequence[Part], prune: bool) -> Iterator[str]:
    """What is to be said of a finished source's folder; with `prune`, what no part claims is removed from it.

    Args:
        claimed: all parts of the source.

    Yields:
        A sentence on files of other parts (of another recipe, corpus, codec or tokenizer), and one on parts whose file has
        another time of change than when it was read, and was taken for the same.
    """
    names = {job.output_name(part) for part in claimed}
    found = sorted(path.name for pattern in PART_FILES for path in job.out.glob(pattern))
    if left := [name for name in found if name.split(".")[0] not in names]:
        if prune:
            Owned.claim(job.out, SOURCE).remove(*left)
        told = "were removed" if prune else "were left; prune=true removes them"
        yield f"{job.out}: {len(left)} files, such as {left[0]}, are of no part of '{job.source}' any more and {told}"
    retouched = [part for part in claimed if part.changed and _changed(job, part) not in (None, part.changed)]
    if retouched:
        yield (
            f"'{job.source}': the files of {len(retouched)} parts, such as {retouched[0].name}, have another time of change "
            "than when they were read, and were taken for the same by name, size and samples of their content, as after a "
            f"copy; if you have edited them, delete their shards in {job.out} and give the same command again"
        )


def _changed(job: TokenizeJob, part: Part) -> int | None:
    changed: int | None = read_sealed(job.done_file(part)).get("changed")
    return changed
