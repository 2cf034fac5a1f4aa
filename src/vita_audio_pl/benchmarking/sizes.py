"""Models and rows to measure: numbers only, so that a command shows its settings at once."""

from dataclasses import dataclass

from vita_audio_pl.config.fields import setting


@dataclass
class ModelSize:
    """A model."""

    hidden_size: int = setting(256, "width", at_least=1)
    intermediate_size: int = setting(1024, "width of the feed-forward layers", at_least=1)
    layers: int = setting(4, "of the backbone", at_least=1)
    attention_heads: int = setting(4, "of a layer", at_least=1)
    key_value_heads: int = setting(2, "of a layer", at_least=1)
    vocabulary: int = setting(20000, "rows of the vocabulary layer", at_least=1)
    heads: int = setting(10, "MCTP heads", at_least=0)
    tied: bool = setting(False, "embeddings and vocabulary layer are one")


@dataclass
class TrainingSize(ModelSize):
    """A model and one row."""

    length: int = setting(2048, "tokens of the row", at_least=1)
    documents: int = setting(8, "that share the row, of unequal length", at_least=1)
    labelled: float = setting(0.6, "share of each document, its end, that is labelled", above=0, at_most=1)
    pattern: str = setting("boost", "decoding pattern that says which head writes which token")
