"""A typical packed row, to count rows, pairs and labels."""

import torch

from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.packed import IGNORE_INDEX, PackedBatch
from vita_audio_pl.planning.settings import RowsConfig
from vita_audio_pl.text.vocabulary import Vocabulary


def expected_row(
    rows: RowsConfig, length: int, n_heads: int, pattern: DecodePattern, vocabulary: Vocabulary, encoder: bool = False
) -> PackedBatch:
    """A full packed row of equal conversations: a prompt, then a labelled answer that follows the decoding pattern.

    Args:
        encoder: half of each prompt's audio goes through an encoder with 60 ms per state; otherwise none does.
    """
    each = min(rows.document_tokens, length)
    documents = max(1, round(length / each))
    numbers = torch.arange(length) * documents // length
    starts = torch.searchsorted(numbers, numbers)
    positions = torch.arange(length) - starts
    ends = torch.bincount(numbers)[numbers]
    answers = ends - (ends * rows.labelled).round().long()
    labelled = (positions >= answers) & (positions > 0)
    spoken = ((positions * rows.audio).floor() != ((positions + 1) * rows.audio).floor()) & labelled
    ids = torch.where(spoken, vocabulary.first_code, 0)
    writers = torch.full((length,), -1, dtype=torch.int8)
    longest = int(ends.max())
    letters = torch.from_numpy(pattern.writers(longest, n_heads).copy())
    writers[labelled] = letters[(positions - answers)[labelled]]
    clips: tuple[torch.Tensor, ...] = ()
    if encoder:
        clips = tuple(torch.empty(int(n), 0, device="meta") for n in torch.bincount(numbers) * (1 - rows.labelled) / 2)
    return PackedBatch(
        input_ids=ids[None],
        labels=torch.where(labelled, ids, IGNORE_INDEX)[None],
        position_ids=positions[None],
        document_ids=numbers.int()[None],
        writers=writers[None],
        loss_weights=None,
        divisor=float(labelled.sum()),
        sources=torch.zeros(1, length, dtype=torch.int16),
        names=[[f"expected/{i}" for i in range(documents)]],
        position={},
        clips=clips,
    )
