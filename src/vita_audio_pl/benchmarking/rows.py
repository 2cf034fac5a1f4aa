"""Packed rows of the size to be measured."""

import torch

from vita_audio_pl.benchmarking.sizes import TrainingSize
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.packed import IGNORE_INDEX, PackedBatch


def make_batch(size: TrainingSize, seed: int) -> PackedBatch:
    """One row of documents, each a prompt and a labelled answer that follows the decoding pattern."""
    random = torch.Generator().manual_seed(seed)
    shares = torch.rand(size.documents, generator=random) + 0.5
    ends = (shares.cumsum(0) / shares.sum() * size.length).round().long()
    lengths = torch.diff(ends, prepend=torch.zeros(1, dtype=torch.int64)).tolist()
    ids = torch.randint(size.vocabulary, (1, size.length), generator=random)
    labels, writers = torch.full_like(ids, IGNORE_INDEX), torch.full(ids.shape, -1, dtype=torch.int8)
    start = 0
    for length in lengths:
        answer = round(length * size.labelled)
        span = slice(start + length - answer, start + length)
        labels[0, span] = ids[0, span]
        writers[0, span] = torch.from_numpy(DecodePattern.of(size.pattern).writers(answer, size.heads).copy())
        start += length
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    documents = torch.repeat_interleave(torch.arange(size.documents), torch.tensor(lengths))[None].int()
    sources = torch.zeros_like(ids, dtype=torch.int16)
    names = [[f"benchmark/{i}" for i in range(size.documents)]]
    labelled = float((labels >= 0).sum())
    return PackedBatch(ids, labels, positions, documents, writers, None, labelled, sources, names, {})
