"""The passes of an answer: how many rows the backbone and each head process, and how often."""

from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from vita_audio_pl.interleave import DecodePattern


class Shape(NamedTuple):
    """A pass of predictor 0 (the backbone) or k + 1 (head k) over `width` rows of each sequence."""

    predictor: int
    width: int


@lru_cache
def recurring_shapes(pattern: DecodePattern, n_heads: int, verifies: bool, chained: bool = True) -> frozenset[Shape]:
    """The passes of an answer after its prompt; heads that are not `chained` read one row.

    Under verification the backbone reads its own token and every draft, as many as pay, and head k, which drafts k
    tokens after it, what
    the last round committed or all that it drafted from: any width from k + 1 up. Rounds that end early are left out.
    """
    if not chained:
        widest = recurring_shapes(pattern, n_heads, verifies)
        return frozenset(Shape(predictor, 1 if predictor else width) for predictor, width in widest)
    if not verifies:
        return frozenset(_written_passes(pattern, n_heads))
    drafts = max(pattern.writers(3 * sum(pattern.runs), n_heads).tolist())
    heads = {Shape(k, width) for k in range(1, drafts + 1) for width in range(k, drafts + 2)}
    return frozenset(heads | {Shape(0, width) for width in range(1, drafts + 2)})


@lru_cache
def row_counts(pattern: DecodePattern, n_heads: int, verifies: bool) -> dict[str, Counter[int]]:
    """How often the matrices of the `backbone`, chained `heads`, `parallel` ones and the `vocabulary` are multiplied by each number of rows.

    Under verification all drafts are assumed to be accepted, which is when its speed matters.
    """
    drafts = max(pattern.writers(3 * sum(pattern.runs), n_heads).tolist())
    if verifies and drafts:
        backbone, heads = Counter({drafts + 1: 1}), Counter({drafts + 1: drafts})
        vocabulary = Counter({drafts + 1: 1, 1: drafts})
        return {"backbone": backbone, "heads": heads, "parallel": Counter({1: drafts}), "vocabulary": vocabulary}
    passes = _written_passes(pattern, n_heads)
    backbone, heads = Counter[int](), Counter[int]()
    for shape, count in passes.items():
        (heads if shape.predictor else backbone)[shape.width] += count
    vocabulary = Counter({1: passes.total()})
    parallel = Counter({1: heads.total()}) if heads else Counter[int]()
    return {"backbone": backbone, "heads": heads, "parallel": parallel, "vocabulary": vocabulary}


def _written_passes(pattern: DecodePattern, n_heads: int) -> Counter[Shape]:
    """Passes of three periods of the pattern, without each predictor's first one (over the prompt)."""
    passes = Counter[Shape]()
    read: dict[int, int] = {}
    for length, writer in enumerate(pattern.writers(3 * sum(pattern.runs), n_heads).tolist(), 1):
        if writer in read:
            passes[Shape(writer, length - read[writer])] += 1
        read[writer] = length
    return passes
