"""The batch that training moves around."""

import dataclasses

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.distributed.utils import _recursive_to

from vita_audio_pl.packed import IGNORE_INDEX, PackedBatch
from vita_audio_pl.text.rendering import NO_LABEL


def batch(loss_weights: torch.Tensor | None = None) -> PackedBatch:
    ids = torch.arange(8).reshape(2, 4)
    return PackedBatch(ids, ids, ids, ids.int(), ids.to(torch.int8), loss_weights, 8.0, ids.short(), [["a/1"]] * 2, {})


def test_a_batch_for_a_device_keeps_its_tensors_on_the_host():
    sent = move_data_to_device(batch(torch.ones(2, 4)), torch.device("meta"))  # as Lightning sends it
    assert sent.device.type == "meta" and sent.divisor == 8.0 and sent.names == [["a/1"]] * 2
    assert {value.device.type for value in vars(sent).values() if isinstance(value, torch.Tensor)} == {"cpu"}
    kept = _recursive_to(sent, torch.device("meta"), False)[0]  # as DDP and FSDP2 send what a module is called with
    assert {value.device.type for value in vars(kept).values() if isinstance(value, torch.Tensor)} == {"cpu"}


def test_tensors_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"labels has shape \(2, 3\), input_ids \(2, 4\)"):
        dataclasses.replace(batch(), labels=torch.zeros(2, 3, dtype=torch.int64))


def test_rendering_and_losses_agree_on_what_is_not_scored():
    assert NO_LABEL == IGNORE_INDEX
