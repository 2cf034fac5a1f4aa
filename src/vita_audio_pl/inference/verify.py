"""Speculative checks: which drafted tokens the backbone lets stand.

Exact: `greedy` keeps a draft as long as it equals the backbone's most likely token. `sample` keeps a draft drawn from q with
probability min(1, p / q) and replaces the first one refused by a draw from max(p - q, 0), so that what comes out is
distributed as p, the backbone's own distribution (speculative sampling, arXiv 2302.01318). Both are exact in float32. In 16
bits rounding differs between a pass over several rows and a pass over one, so where two tokens are nearly as likely, verified
and plain answers may part.

Looser, as loose as its groups are:

`groups` (coarse-grained acceptance, arXiv 2511.13732) asks only whether a code belongs to a group that the backbone would
have chosen (`code_groups`). Sampling, a group G that the draft is in is drawn evenly, kept with probability
min(1, P(G) / Q(G)), and otherwise replaced by a group from max(P - Q, 0) and in it a token by the backbone's shares, so that
groups are distributed exactly as the backbone's. Greedily, which the paper does not treat, a draft stands that shares a group
with the most likely token.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from vita_audio_pl.inference.code_groups import CodeGroups
from vita_audio_pl.inference.sampling import Sampler


def agreeing(drafts: Sequence[int], own: Sequence[int], groups: CodeGroups | None = None) -> int:
    """Number of `drafts`, from the first, that stand beside the backbone's `own` tokens: equal, or of one group."""

    def stands(n: int) -> bool:
        return drafts[n] == own[n] or groups is not None and groups.alike(drafts[n], own[n])

    return _kept(len(drafts), stands)


def speculative(
    drafts: Sequence[int],
    proposals: Sequence[Tensor],
    targets: Sequence[Tensor],
    sampler: Sampler,
    groups: tuple[CodeGroups, Sequence[int]] | None = None,
) -> tuple[int, int]:
    """Number of drafts kept, and the column of the token that follows them.

    Args:
        drafts: columns that were drawn.
        proposals: the distribution `(choices,)` each was drawn from.
        targets: the backbone's distribution at the same places, and one more after the last draft.
        sampler: gives the random numbers.
        groups: of codes, and for each draft the column of code 0.
    """

    def stands(n: int) -> bool:
        q, p, column = proposals[n], targets[n], drafts[n]
        if groups is not None:
            members, first = groups[0].group(column, groups[1][n]), groups[1][n]
            if len(members) > 1:
                column = int(members[int(sampler.uniform() * len(members))])
            q, p = (groups[0].masses(groups[0].shares(each, first), first) for each in (q, p))
        return sampler.uniform() * float(q[column]) < float(p[column])

    kept = _kept(len(drafts), stands)
    target = targets[kept]
    if kept == len(drafts):
        return kept, sampler.draw(target)
    if groups is None:
        rest = (target - proposals[kept]).clamp_min(0)
        return kept, sampler.draw(rest if bool(rest.any()) else target)
    return kept, _other_group(proposals[kept], target, sampler, groups[0], groups[1][kept])


def _kept(count: int, stands: Callable[[int], bool]) -> int:
    """The first draft that is refused."""
    return next((n for n in range(count) if not stands(n)), count)


def _other_group(q: Tensor, p: Tensor, sampler: Sampler, groups: CodeGroups, first: int) -> int:
    """A token of a group that the drafts' groups give too little of."""
    shares = groups.shares(p, first)
    wanted = groups.masses(shares, first)
    rest = (wanted - groups.masses(groups.shares(q, first), first)).clamp_min(0)
    members = groups.group(sampler.draw(rest if bool(rest.any()) else wanted), first)
    return int(members[sampler.draw(shares[members])]) if len(members) > 1 else int(members[0])
