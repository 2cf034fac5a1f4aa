"""What ranks have to agree on although each knows a part of it: figures of validation, and that a checkpoint is there."""

import errno
import os
import time
from pathlib import Path

import pytest
import torch
import toy
from ranks import run_ranks

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.objectives import HeadLosses
from vita_audio_pl.storage.owned import Owned
from vita_audio_pl.training.checkpoints import parts
from vita_audio_pl.training.checkpoints.writer import CheckpointWriter
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.run_folder.layout import STAGE
from vita_audio_pl.training.step.tally import Tally

HEADS = 1


def losses_of(batch) -> HeadLosses:
    """Every label costs its id, and is right where that is even."""
    labels = batch.labels[batch.labels >= 0]
    total = labels.sum() / batch.divisor
    counts = torch.tensor([len(labels), 0])
    right = torch.tensor([int((labels % 2 == 0).sum()), 0])
    return HeadLosses(total.float(), torch.tensor([float(labels.sum()), 0.0]), counts, right, counts, right)


def figures(ranks_of_source: list[int], rank: int, ranks: int) -> dict[str, float]:
    """Figures of two sources; only `ranks_of_source` see rows of the second."""
    read = {}
    for source, seen_by in (("a", range(ranks)), ("b", ranks_of_source)):
        tally = Tally(HEADS)
        for step in range(2):
            if rank in seen_by:
                share = 4 // len(seen_by)
                first = share * list(seen_by).index(rank)
                batch = toy.toy_batch(7, step, slice(first, first + share), 4)
                tally.add(losses_of(batch), batch)
        read |= tally.read(f"val/{source}", ranks > 1, "cpu")
    return read


def test_figures_of_a_source_that_one_rank_sees_are_all_ranks_and_those_of_one_process(tmp_path):
    alone = figures([0], 0, 1)
    first, second = run_ranks(lambda rank: figures([0], rank, 2), tmp_path)
    assert first == second and first.keys() == alone.keys() and "val/b/loss" in alone
    assert first == pytest.approx(alone, rel=1e-6)
    assert alone["val/b/loss"] == pytest.approx(alone["val/b/loss_main"], rel=1e-6)


class Trainer:
    """What the writer asks of a trainer."""

    num_devices, global_step, max_steps = 2, 5, 9

    def __init__(self, rank: int) -> None:
        self.global_rank = self.local_rank = rank
        self.world_size, self.is_global_zero = 2, rank == 0
        self.model = torch.nn.Linear(3, 2)
        self.optimizers = [torch.optim.AdamW(self.model.parameters())]
        self.strategy = self

    def barrier(self, name: str) -> None:
        torch.distributed.barrier()


ENGINE = Engine(toy.toy_config(Path("runs"), "trainer=cpu_ddp").trainer)


def save(folder: Path, rank: int) -> CheckpointWriter:
    trainer = Trainer(rank)
    Owned.claim(folder.parent, STAGE)
    writer = CheckpointWriter(folder, ENGINE, keep=1)
    writer.prepare(trainer)
    writer.save(trainer, trainer.model, {})
    return writer


def test_no_rank_leaves_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    replace = os.replace

    def slow(source, target):
        if str(target).endswith(".ckpt"):
            time.sleep(1.0)
        replace(source, target)

    monkeypatch.setattr("vita_audio_pl.training.checkpoints.folders.os.replace", slow)

    def leaves(rank: int) -> list[str]:
        save(tmp_path / "stage" / "checkpoints", rank).finish()
        return [path.name for path in (tmp_path / "stage" / "checkpoints").iterdir()]

    assert run_ranks(leaves, tmp_path / "ranks") == [["step-00000005.ckpt"]] * 2


def test_a_rank_that_cannot_write_stops_all_with_its_reason(tmp_path, monkeypatch):
    def full(path, *what):
        raise OSError(errno.ENOSPC, "No space left on device")

    def leaves(rank: int) -> str:
        if rank == 1:
            monkeypatch.setattr(parts, "write_tensors", full)
        try:
            save(tmp_path / "stage" / "checkpoints", rank).finish()
        except UserError as error:
            return str(error)
        return ""

    told = run_ranks(leaves, tmp_path / "ranks")
    assert told[0] == told[1] and "the disk is full" in told[0] and "there is no earlier one" in told[0]
