"""The batch that training moves around."""

import dataclasses

import pytest
import torch

from vita_audio_pl.packed import IGNORE_INDEX, PackedBatch
from vita_audio_pl.text.rendering import NO_LABEL


def batch(loss_weights: torch.Tensor | None = None) -> PackedBatch:
    ids = torch.arange(8).reshape(2, 4)
    return PackedBatch(ids, ids, ids, ids.int(), ids.to(torch.int8), loss_weights, 8.0, ids.short(), [["a/1"]] * 2, {})


def test_a_batch_moves_with_everything_that_it_carries():
    moved = batch().to("meta")
    assert {value.device.type for value in vars(moved).values() if isinstance(value, torch.Tensor)} == {"meta"}
    assert moved.loss_weights is None and moved.divisor == 8.0 and moved.names == [["a/1"]] * 2
    assert moved.writers.dtype == torch.int8
    assert batch(torch.ones(2, 4)).to("meta").loss_weights.device.type == "meta"


def test_tensors_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"labels has shape \(2, 3\), input_ids \(2, 4\)"):
        dataclasses.replace(batch(), labels=torch.zeros(2, 3, dtype=torch.int64))


def test_rendering_and_losses_agree_on_what_is_not_scored():
    assert NO_LABEL == IGNORE_INDEX
