"""Sizes of models and rows to measure, separate from the benchmarks so that `--help` is quick."""

from dataclasses import dataclass

from vita_audio_pl.config.fields import setting
from vita_audio_pl.models.families import FAMILIES


@dataclass
class ModelSize:
    """A model."""

    hidden_size: int = setting(256, "hidden size", at_least=1)
    intermediate_size: int = setting(1024, "width of the feed-forward layers", at_least=1)
    layers: int = setting(4, "layers of the backbone", at_least=1)
    attention_heads: int = setting(4, "attention heads of a layer", at_least=1)
    key_value_heads: int = setting(2, "key-value heads of a layer", at_least=1)
    vocabulary: int = setting(20000, "rows of the vocabulary matrix", at_least=1)
    heads: int = setting(10, "MCTP heads", at_least=0)
    tied: bool = setting(False, "tie the embeddings and the vocabulary matrix")
    family: str = setting("qwen2", "family of the backbone: qwen2 (Qwen2.5 too) or qwen3", choices=tuple(FAMILIES))
    head_dim: int | None = setting(None, "size of a query or key; null = hidden_size / attention_heads", at_least=2)


@dataclass
class TrainingSize(ModelSize):
    """A model and one row."""

    length: int = setting(2048, "tokens of a row", at_least=1)
    documents: int = setting(8, "documents in a row, of unequal length", at_least=1)
    labelled: float = setting(0.6, "share of each document, at its end, that has labels", above=0, at_most=1)
    pattern: str = setting("boost", "decoding pattern that says which head writes which token")
