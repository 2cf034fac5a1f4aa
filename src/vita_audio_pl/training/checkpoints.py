"""Periodic checkpoints that a kill at any moment cannot spoil."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from vita_audio_pl.packed import PackedBatch
from vita_audio_pl.training.rng import restore_rng_state, rng_state

_NAME = re.compile(r"step-(\d+)\.ckpt")
_ASIDE = ".tmp"
RNG = "rng"


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    return max(_complete(folder), key=_step, default=None)


class PeriodicCheckpoint(Callback):
    """Saves every `every` optimiser steps as `folder/step-<n>.ckpt` and keeps the last `keep`.

    A checkpoint is written under another name and renamed when it is whole, on disk and on every rank, so that what
    carries the name can be trusted. Engines that shard write a folder instead of a file; nothing else differs.
    """

    def __init__(self, folder: Path, every: int, keep: int) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self._rng: dict[str, Any] | None = None

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(f"*{_ASIDE}"):
                _remove(leftover)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._rng is not None:
            restore_rng_state(self._rng)
            self._rng = None

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ends_step and trainer.global_step % self.every == 0:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Write a checkpoint of the step just done; all ranks call it."""
        path = self.folder / f"step-{trainer.global_step:08d}.ckpt"
        if path.exists():
            return
        aside = path.with_name(path.name + _ASIDE)
        trainer.save_checkpoint(aside)
        if trainer.is_global_zero:
            _flush(aside)
            os.replace(aside, path)
            for old in sorted(_complete(self.folder), key=_step)[: -self.keep]:
                _remove(old)
        trainer.strategy.barrier("checkpoint is in place")

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[RNG] = rng_state()

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._rng = checkpoint.get(RNG)


def _complete(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*.ckpt") if _NAME.fullmatch(path.name)]


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match.group(1))


def _flush(path: Path) -> None:
    """Force a file, or the files of a folder, onto the disk before the rename can be seen."""
    for file in [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
