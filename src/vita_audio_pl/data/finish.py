"""Finishing a prepared source: merges parts into shards, writes index, manifest and report, removes leftovers."""

import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vita_audio_pl.data.card import card_of, judged_in
from vita_audio_pl.data.clips import AUDIO_INDEX
from vita_audio_pl.data.index import IndexPiece, merge_indexes
from vita_audio_pl.data.jobs import FAILED
from vita_audio_pl.data.left_out import LeftOutCounts, NothingUsable
from vita_audio_pl.data.merge import merge_shard, planned_shards
from vita_audio_pl.data.outputs import PLACES, SHARD_FILES, SHARD_INDEX, TAR, Outputs, Record
from vita_audio_pl.data.prepared import CARDS, INDEX, PART_FILES, SKIPPED, SOURCE, Manifest, ShardFile
from vita_audio_pl.data.readers import Part
from vita_audio_pl.data.tokenize import TokenizeJob
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import FileSum
from vita_audio_pl.storage.copies import on_this_machine
from vita_audio_pl.storage.files import atomic_write, write_array, write_json
from vita_audio_pl.storage.owned import Owned
from vita_audio_pl.storage.places import names_in

_LARGE = 1 << 30  # bytes; larger copies are announced first


def finish_source(job: TokenizeJob, parts: Sequence[Part], tell: Callable[[str], None] = print) -> Manifest:
    """Turn finished parts into a prepared source; idempotent.

    Unusable samples are listed in `skipped.jsonl` with their reasons, up to a limit per part, as are some of the
    filtered ones. Parts are merged into shards of `job.shard_bytes` and their own files removed, except those that the
    existing manifest names.

    Args:
        tell: receives a sentence before large copies.

    Raises:
        UserError: a part is unfinished or damaged, no sample is usable, or too many were left out.
    """
    names, outputs = [job.output_name(part) for part in parts], Outputs.find(job.out)
    missing = set(outputs.unfinished(names))
    if missing:
        first = next(part.name for part, name in zip(parts, names, strict=True) if name in missing)
        raise UserError(
            f"{len(missing)} of {len(parts)} parts of '{job.source}' are not finished (the first: {first}); "
            "give the same prepare command again"
        )
    reports = outputs.reports(names)
    lines = (json.dumps(culprit, ensure_ascii=False) + "\n" for report in reports for culprit in report["culprits"])
    named = "".join(lines).encode("utf-8", "backslashreplace")
    counts = LeftOutCounts.of(reports)
    if counts.too_many(job.max_skipped):
        atomic_write(job.out / SKIPPED, named)
        sentence = counts.sentence(job.source, job.max_skipped, job.out / SKIPPED)
        raise UserError(sentence) if counts.used else NothingUsable(sentence)
    merged = _merge(job, names, outputs, tell)
    records = list(merged.values())
    with on_this_machine([job.out / f"{stem}{SHARD_INDEX}" for stem in merged]) as indexes:
        index_crc = merge_indexes([IndexPiece(path, shard=n) for n, path in enumerate(indexes)], job.out / INDEX)
    manifest = Manifest(
        source=job.source,
        task=job.task,
        tokenizer=job.tokenizer.fingerprint,
        codec=job.codec,
        samples=sum(report["shard"]["samples"] for report in reports),
        seconds=round(sum(report["seconds"] for report in reports), 3),
        text_tokens=sum(report["text_tokens"] for report in reports),
        codes=sum(report["codes"] for report in reports),
        shards=tuple(ShardFile(**record["shard"]) for record in records),
        index_crc=index_crc,
        audio_shards=tuple(ShardFile(**record["audio_shard"]) for record in records if "audio_shard" in record),
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
        with on_this_machine([job.out / f"{stem}{PLACES}" for stem in merged]) as arrays:
            write_array(job.out / AUDIO_INDEX, np.concatenate([np.load(path) for path in arrays]))
    mine = Owned.claim(job.out, SOURCE)
    mine.remove_abandoned()
    mine.remove(*(name for name in names_in(job.out) if name.startswith(FAILED)))
    card = card_of(manifest, judged=judged_in(job.out, manifest))
    write_json(job.out / CARDS[1], card.to_json())
    atomic_write(job.out / CARDS[0], card.to_markdown().encode("utf-8", "backslashreplace"))
    sums = {name: FileSum.from_json(value) for record in records for name, value in record["sums"].items()}
    atomic_write(job.out / SKIPPED, named)  # last: without a manifest it means that too much was left out
    manifest.save(job.out, sums)  # last: a folder with a manifest is both complete and clean
    return manifest


def _merge(job: TokenizeJob, names: Sequence[str], outputs: Outputs, tell: Callable[[str], None]) -> dict[str, Record]:
    """The source's shards and the contents of each `.done.json`; removes the parts that were merged."""
    planned, mine = planned_shards(names, outputs, job.shard_bytes), Owned.claim(job.out, SOURCE)
    new = [name for stem, group in planned.items() if stem not in outputs.records for name in group]
    size = sum(outputs.parts[name].bytes for name in new)
    if size > _LARGE:
        tell(f"'{job.source}': {len(new)} parts, {size / 1e9:.1f} GB, are merged into {len(planned)} shards")
    try:
        named = {shard.name.removesuffix(TAR) for shard in Manifest.load(job.out).shards}
    except UserError:
        named = set()
    there = {*names_in(job.out)}

    def remove(stems: set[str]) -> None:
        files = [f"{stem}{ending}" for stem in stems - {*planned} - named for ending in SHARD_FILES]
        mine.remove(*(name for name in files if name in there))

    merged = {}
    for stem, group in planned.items():
        merged[stem] = merge_shard(stem, group, outputs)
        remove({*group})
    whole = {*names}
    remove({stem for stem, inside in outputs.inside.items() if whole.issuperset(inside)})
    return merged


def leftovers(job: TokenizeJob, claimed: Sequence[Part], prune: bool) -> Iterator[str]:
    """Warnings about a finished source's folder; with `prune`, also removes files that are no longer needed.

    Args:
        claimed: all parts of the source.

    Yields:
        A sentence on shards of other parts (from another recipe, corpus, codec or tokenizer) and on merged parts, and
        one on parts whose file has a new modification time but was taken as unchanged.
    """
    outputs, names = Outputs.find(job.out), [job.output_name(part) for part in claimed]
    used = {shard.name.removesuffix(TAR) for shard in Manifest.load(job.out).shards}
    wanted = {*names}.difference(*(outputs.inside.get(stem, ()) for stem in used))
    used |= wanted | {stem for stem, inside in outputs.inside.items() if not wanted.isdisjoint(inside)}
    found = sorted(path.name for pattern in PART_FILES for path in job.out.glob(pattern))
    if left := [name for name in found if name.split(".")[0] not in used]:
        if prune:
            Owned.claim(job.out, SOURCE).remove(*left)
        told = "were removed" if prune else "were left, in case a training reads them; prune=true removes them"
        yield f"{job.out}: {len(left)} files, such as {left[0]}, are of no use to '{job.source}' any more and {told}"
    retouched = [
        part
        for part, name in zip(claimed, names, strict=True)
        if part.changed
        and name in outputs.parts
        and outputs.parts[name].report.get("changed") not in (None, part.changed)
    ]
    if retouched:
        yield (
            f"'{job.source}': the files of {len(retouched)} parts, such as {retouched[0].name}, have another time of change "
            "than when they were read, and were taken for the same by name, size and samples of their content, as after a "
            f"copy; if you have edited them, delete their shards in {job.out} and give the same command again"
        )
