"""Tiny models and hand-made packed batches."""

from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config

from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.packed import IGNORE_INDEX, PackedBatch

PARITY = Path(__file__).parents[1] / "parity" / "model"


@pytest.fixture
def parity() -> Path:
    """Numbers of the published system on tiny random weights."""
    return PARITY


@pytest.fixture
def tiny():
    """Builds a tiny model: `tiny(n_heads=2, tied=False, attention=..., **backbone fields)`."""

    def build(
        n_heads=2, tied=False, attention="per_document", detach_heads=False, seed=0, spread=0.05, form="mctp", **fields
    ):
        torch.manual_seed(seed)
        shape = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
        heads = dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256)
        backbone = Qwen2Config(**(shape | heads | fields), tie_word_embeddings=tied, initializer_range=spread)
        return SpeechLM(SpeechLMConfig(backbone, n_heads, attention, detach_heads, heads=form))

    return build


@pytest.fixture
def pack():
    """Builds a batch from rows of document lengths: `pack([[9, 5], [12]], vocabulary=64)`; what is left is padding."""

    def build(rows, vocabulary=64, seed=0, prompt=2, weighted=False, n_heads=2):
        random = torch.Generator().manual_seed(seed)
        length = max(map(sum, rows)) + 3
        shape = (len(rows), length)
        ids = torch.randint(0, vocabulary, shape, generator=random)
        positions, documents = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -1, dtype=torch.int32)
        labels = torch.full(shape, IGNORE_INDEX)
        for row, lengths in enumerate(rows):
            start = 0
            for number, n in enumerate(lengths):
                span = slice(start, start + n)
                positions[row, span], documents[row, span] = torch.arange(n), number
                labels[row, start + prompt : start + n] = ids[row, start + prompt : start + n]
                start += n
        writers = torch.where(labels >= 0, positions % (n_heads + 1), -1).to(torch.int8)
        weights = torch.rand(shape, generator=random) + 0.5 if weighted else None
        divisor = weights[labels >= 0].sum().item() if weighted else float((labels >= 0).sum())
        sources = torch.where(documents >= 0, 0, -1).to(torch.int16)
        names = [[f"test/{row}-{i}" for i in range(len(lengths))] for row, lengths in enumerate(rows)]
        return PackedBatch(ids, labels, positions, documents, writers, weights, divisor, sources, names, {})

    return build
