"""The batch of training: packed rows of documents with labels, writers and bookkeeping."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a token that is not scored."""


@dataclass
class PackedBatch:
    """Rows of packed documents; every tensor but `reference` is `(rows, length)`.

    Tensors stay in host memory: the layout of documents determines which rows are computed, and reading it back from a
    device would synchronise. The model sends what it needs to `device`.

    Attributes:
        input_ids: int64 token ids.
        labels: int64, `input_ids` where scored and -100 elsewhere; not shifted.
        position_ids: int64, from 0 in each document.
        document_ids: int32, from 0 in each row, -1 on padding.
        writers: int8, which predictor writes this token when decoding: 0 the backbone, k + 1 head k, -1 none.
        loss_weights: float32 per label, or None if every label weighs 1.
        divisor: sum of the loss weights (number of labels if None) of the global step: all ranks and micro-batches.
        sources: int16 number of the data source per token, -1 on padding.
        names: per row and document, `source/sample-id`.
        position: data position after this batch has been consumed; opaque.
        reference: of rows whose documents come in pairs, the chosen answer's first: log-probabilities `(pairs, 2)` float64
            of both answers under the model that the stage started from, NaN where it could not read them; None otherwise.
        clips: features `(frames, size)` float32 of audio for the encoder, one for each span of
            `<|context_of_audio|>`, row by row in the order of the spans.
        device: device that computes with the batch.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    document_ids: Tensor
    writers: Tensor
    loss_weights: Tensor | None
    divisor: float
    sources: Tensor
    names: list[list[str]]
    position: dict[str, Any]
    clips: tuple[Tensor, ...] = ()
    reference: Tensor | None = None
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name != "reference" and value.shape != self.input_ids.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, input_ids {tuple(self.input_ids.shape)}")

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same batch, to be computed on `device`."""
        return dataclasses.replace(self, device=torch.device(device))
