"""Checkpoints of what trains in host memory: a bounded copy runs ahead of the disk."""

import threading

import pytest
import torch

from vita_audio_pl.models.tensor_file import file_order
from vita_audio_pl.training.checkpoints import host_copy
from vita_audio_pl.training.checkpoints.host_copy import HostCopy

KIB = 1024


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(host_copy, "_PIECE", 4 * KIB)
    monkeypatch.setattr(host_copy, "_ALWAYS_HELD", 16 * KIB)
    values = {
        f"weight/{n}": torch.randn(n * 1000, dtype=dtype) for n, dtype in ((30, torch.float32), (7, torch.float16))
    }
    return values, HostCopy(values, dict.fromkeys(values, 0))


def test_copies_run_ahead_of_the_disk_by_no_more_than_they_may_hold(small):
    values, copy = small
    taking = threading.Thread(target=copy.take)
    taking.start()
    found, most = [], 0
    for piece in copy.pieces():
        most = max(most, copy._held)
        found.append(piece.clone())
    taking.join()
    assert 0 < most <= sum(value.nbytes for value in values.values()) // host_copy._SHARE_HELD + 4 * KIB
    written = torch.cat([piece.view(torch.uint8) for piece in found])
    assert written.equal(torch.cat([values[key].view(torch.uint8) for key in file_order(copy.layout)]))


def test_what_is_not_finite_is_named_once(small):
    values, copy = small
    values["weight/30"][-3000:] = torch.nan
    threading.Thread(target=copy.take).start()
    assert list(copy.pieces()) and copy.not_finite == ["weight/30"]


def test_training_does_not_wait_for_a_writer_that_has_given_up(small):
    _, copy = small
    taking = threading.Thread(target=copy.take)
    taking.start()
    assert taking.is_alive()  # there is no room for more, and nobody writes
    copy.give_up()
    taking.join(60)
    assert not taking.is_alive()
