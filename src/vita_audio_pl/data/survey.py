"""What every sample of a source weighs in a run: its row length and its loss weight, and why some are left out."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from vita_audio_pl.data.index import ONE_ANSWER
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.text import LengthRule, RenderOptions

_CHUNK = 1 << 18  # samples measured at a time: the temporaries stay in the processor's cache

QUARANTINED, OVERLONG, CUT = "quarantined", "longer than a row", "cut to a row"


@dataclass(frozen=True, eq=False)
class Survey:
    """Numbers of all samples of a source under one interval ratio and row length.

    Attributes:
        tokens: `(samples,) uint32` tokens that the sample takes of a row; 0 = left out.
        weight: `(samples,) float32` sum of the loss weights of its labels; of a pair of answers 1.
        counts: samples that were left out or cut, by reason.
    """

    tokens: np.ndarray
    weight: np.ndarray
    counts: dict[str, int]


def survey(
    source: PreparedSource,
    rule: LengthRule,
    options: RenderOptions,
    continuous: bool,
    row_length: int,
    overlong: str,
    quarantined: Collection[int] | None = None,
) -> Survey:
    """Measures a source from its index alone.

    Args:
        source: the prepared source.
        rule: the renderer's length rule.
        options: loss weights.
        continuous: audio outside answers enters as encoder frames.
        row_length: tokens in a row.
        overlong: `skip` leaves out samples longer than a row; `cut` keeps those with one answer without audio, which
            end with the row. A sample whose whole answer would be cut off is left out.
        quarantined: samples that are left out; None for those that are in quarantine now.
    """
    index = source.index
    tokens, weight = np.empty(len(index), np.uint32), np.empty(len(index), np.float32)
    counts = {QUARANTINED: 0, OVERLONG: 0, CUT: 0}
    for start in range(0, len(index), _CHUNK):
        part = slice(start, start + _CHUNK)
        measured = index.measure(rule, continuous, part)
        length, text_labels, audio_labels = measured.tokens, measured.text_labels, measured.audio_labels
        too_long = np.flatnonzero(length > row_length)
        if len(too_long):
            left = text_labels[too_long] - (length[too_long] - row_length)
            keep = (index.part("flags", part)[too_long] & ONE_ANSWER > 0) & (audio_labels[too_long] == 0) & (left > 0)
            keep &= overlong == "cut"
            length[too_long] = np.where(keep, row_length, 0)
            text_labels[too_long] = left
            counts[CUT] += int(keep.sum())
            counts[OVERLONG] += int((~keep).sum())
        tokens[part] = length
        weight[part] = (
            1 if source.holds_pairs else text_labels * options.text_weight + audio_labels * options.audio_weight
        )
    quarantined = source.quarantined if quarantined is None else quarantined
    broken = np.fromiter(quarantined, np.int64, len(quarantined))
    counts[OVERLONG] -= int((tokens[broken] == 0).sum())
    counts[QUARANTINED] = len(broken)
    tokens[broken] = 0
    return Survey(tokens, weight, {reason: count for reason, count in counts.items() if count})
