"""Which sequences take part in a round: those for which heads write wait for one another, since a head's pass serves all of them.

Sequences that joined at different times are at different places of their patterns. Without waiting, nearly every round would
have the passes of all heads, each for one or two sequences, at nearly the cost of a pass for all.
"""

from collections.abc import Sequence

from vita_audio_pl.inference.sequence import DecodedSequence

PATIENCE = 4
"""Rounds that a sequence waits, at most: as many tokens of text as come between two runs of heads in the published modes."""


def together(active: Sequence[DecodedSequence]) -> list[DecodedSequence]:
    """Those that a round is for: while some write what the backbone writes, not those whose heads are next.

    A sequence that begins does not wait, so that its first sound is not put off.
    """
    waiting = [s for s in active if s.heads_follow and s.head_passes]
    now = [s for s in active if s not in waiting]
    if any(s.writers for s in now) and all(s.waited < PATIENCE for s in waiting):
        for sequence in waiting:
            sequence.waited += 1
        return now
    for sequence in waiting:
        sequence.waited = 0
    return list(active)
