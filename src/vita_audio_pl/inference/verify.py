"""Speculative checks: which drafted tokens the backbone would have written itself.

`greedy`: a draft is kept as long as it equals the backbone's most likely token. `sample`: a draft drawn from q is kept
with probability min(1, p / q), and the first one refused is replaced by a draw from max(p - q, 0), so that what comes
out is distributed as p, the backbone's own distribution (speculative sampling, arXiv 2302.01318).

Both are exact in float32. In 16 bits rounding differs between a pass over several rows and a pass over one, so where two tokens
are nearly as likely, verified and plain answers may part.
"""

from torch import Tensor

from vita_audio_pl.inference.sampling import Sampler


def agreeing(drafts: list[int], own: list[int]) -> int:
    """Length of the longest run from the start in which `drafts` equal the backbone's `own` tokens."""
    for count, (draft, token) in enumerate(zip(drafts, own, strict=False)):
        if draft != token:
            return count
    return len(drafts)


def speculative(drafts: list[int], proposals: list[Tensor], targets: list[Tensor], sampler: Sampler) -> tuple[int, int]:
    """Number of drafts kept, and the column of the token that follows them.

    Args:
        drafts: columns that were drawn.
        proposals: the distribution `(choices,)` each was drawn from.
        targets: the backbone's distribution at the same places, and one more after the last draft.
        sampler: gives the random numbers.
    """
    for count, (column, q, p) in enumerate(zip(drafts, proposals, targets, strict=False)):
        if sampler.uniform() * float(q[column]) >= float(p[column]):
            rest = (p - q).clamp_min(0)
            return count, sampler.draw(rest if bool(rest.any()) else p)
    return len(drafts), sampler.draw(targets[-1])
