"""Models and rows to measure: numbers only, so that a command shows its settings at once."""

from dataclasses import dataclass


@dataclass
class ModelSize:
    """A model."""

    hidden_size: int = 256
    intermediate_size: int = 1024
    layers: int = 4
    attention_heads: int = 4
    key_value_heads: int = 2
    vocabulary: int = 20000
    heads: int = 10
    tied: bool = False


@dataclass
class TrainingSize(ModelSize):
    """A model and one row.

    Attributes:
        length: tokens of the row; documents: how many share it, of unequal length.
        labelled: share of each document, its end, that is labelled.
        pattern: decoding pattern that says which head writes which token.
    """

    length: int = 2048
    documents: int = 8
    labelled: float = 0.6
    pattern: str = "boost"
