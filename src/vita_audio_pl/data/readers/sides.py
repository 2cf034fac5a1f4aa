"""Holding out a share of a corpus for validation, for corpora without such a split."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from vita_audio_pl.data.readers.base import Part, RawSample, Reader, Unreadable
from vita_audio_pl.storage.places import Place

_BY_SAMPLE = "held out by sample"
_kept: ContextVar[list[tuple[Reader, list[Part]]] | None] = ContextVar("_kept", default=None)


@contextmanager
def planned_once() -> Iterator[None]:
    """Within the block, a corpus is planned once for all of its splits, so that lists of millions of lines are not read again."""
    token = _kept.set([])
    try:
        yield
    finally:
        _kept.reset(token)


def _parts_of(reader: Reader) -> list[Part]:
    kept = _kept.get()
    known = next((parts for planned, parts in kept or () if planned == reader), None)
    if known is not None:
        return known
    parts = reader.parts()
    if kept is not None:
        kept.append((reader, parts))
    return parts


@dataclass(frozen=True)
class SideReader:
    """One side of a split: the held-out share, or the rest. Every sample is on one side.

    If the share is one part or more, whole parts are held out, evenly spaced, so that neither side reads the other's
    files; otherwise samples are, by a hash of their names, and faults are reported with the rest.

    Attributes:
        reader: the whole corpus.
        root: folder of the corpus; samples without a name are named by their path in it.
        share: share of the corpus that is held out.
        held_out: whether this is the held-out share.
    """

    reader: Reader
    root: Place
    share: float
    held_out: bool

    def parts(self) -> list[Part]:
        parts = _parts_of(self.reader)
        count = int(self.share * len(parts))
        if count:
            chosen = {(2 * n + 1) * len(parts) // (2 * count) for n in range(count)}
            return [part for n, part in enumerate(parts) if (n in chosen) == self.held_out]
        side = f"{'' if self.held_out else 'without '}{self.share:g} {_BY_SAMPLE}"
        return [
            replace(part, identity=f"{part.identity} {side}", where={**part.where, _BY_SAMPLE: 1})
            for part in parts
            if not (self.held_out and "problem" in part.where)
        ]

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        for sample in self.reader.read(part):
            if _BY_SAMPLE not in part.where:
                yield sample
            elif isinstance(sample, Unreadable):
                if not self.held_out:
                    yield sample
            elif self._is_chosen(sample.conversation.id) == self.held_out:
                yield sample

    def _is_chosen(self, name: str) -> bool:
        digest = hashlib.sha256(name.removeprefix(str(self.root)).encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8]) < self.share * 2**64
