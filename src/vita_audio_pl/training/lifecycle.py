"""Callbacks around a stage's training: resume and checkpoints before and during it, proof and hand-over at its end."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vita_audio_pl.training.checkpoint_restore import restore
from vita_audio_pl.training.checkpoint_writer import CheckpointWriter
from vita_audio_pl.training.checkpoints import best_checkpoint, latest_for_all
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.metrics_csv import MetricsCsv
from vita_audio_pl.training.module import SpeechLMModule
from vita_audio_pl.training.monitor import Monitor
from vita_audio_pl.training.proof import TrainingProof


class Stateful(Protocol):
    """What a checkpoint carries beside weights, moments and data position."""

    def state(self) -> Any:
        """JSON values."""

    def resume_from(self, state: Any) -> None:
        """Take over a `state()`; called before training starts."""


class Resume(Callback):
    """Goes on from the last complete checkpoint. Must stand first: the other callbacks start from what it restores."""

    def __init__(self, writer: CheckpointWriter, engine: Engine, stateful: Mapping[str, Stateful]) -> None:
        self.writer, self.engine, self.stateful = writer, engine, stateful

    def on_fit_start(self, trainer: L.Trainer, module: SpeechLMModule) -> None:
        self.writer.prepare(trainer)
        checkpoint = latest_for_all(trainer, self.writer.folder)
        if checkpoint is None:
            return
        state = restore(checkpoint, trainer, module.speech_lm, self.engine)
        trainer.datamodule.load_state_dict(state["data"])  # type: ignore[attr-defined]
        for name, part in self.stateful.items():
            part.resume_from(state[name])
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.cut_after(trainer.global_step)


class Checkpointing(Callback):
    """Writes a checkpoint every `every` optimiser steps and at the end; keeps the best by a figure of validation, too.

    Args:
        best_by: the figure, of `monitor`, of which less is better; None keeps the last alone.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        stateful: Mapping[str, Stateful],
        every: int,
        monitor: Monitor,
        best_by: str | None = None,
    ) -> None:
        self.writer, self.stateful, self.every = writer, stateful, every
        self.monitor, self.best_by = monitor, best_by

    def on_train_batch_end(
        self, trainer: L.Trainer, module: SpeechLMModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ends_step and (trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps):
            self.save(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, module: SpeechLMModule) -> None:
        value = self.monitor.latest.get(self.best_by) if self.best_by else None
        best = trainer.strategy.broadcast(best_checkpoint(self.writer.folder))
        if value is None or (best is not None and best["value"] <= value):
            return
        self.save(trainer, module)
        self.writer.finish()
        if trainer.is_global_zero and self.best_by is not None:
            self.writer.mark_best(trainer.global_step, self.best_by, value)

    def on_train_end(self, trainer: L.Trainer, module: SpeechLMModule) -> None:
        self.writer.end(trainer)

    def save(self, trainer: L.Trainer, module: SpeechLMModule) -> None:
        """Write a checkpoint of the step just done; all ranks call it."""
        state = {"data": trainer.datamodule.state_dict()}  # type: ignore[attr-defined]
        state |= {name: part.state() for name, part in self.stateful.items()}
        self.writer.save(trainer, module.speech_lm, state)


class HandOver(Callback):
    """Ends a stage whose steps are done: concludes the proof, and gives the trained weights to `write` on rank 0."""

    def __init__(self, engine: Engine, proof: TrainingProof, write: Callable[[dict[str, Tensor]], None]) -> None:
        self.engine, self.proof, self.write = engine, proof, write

    def on_fit_start(self, trainer: L.Trainer, module: SpeechLMModule) -> None:
        if trainer.global_step >= trainer.max_steps:  # killed between the last step and the hand-over: no step is left
            self._conclude(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: SpeechLMModule) -> None:
        if trainer.global_step >= trainer.max_steps:
            self._conclude(trainer, module)

    def _conclude(self, trainer: L.Trainer, module: SpeechLMModule) -> None:
        self.proof.conclude(module)
        weights: dict[str, Tensor] = {}
        for name, parameter in module.speech_lm.named_parameters():
            if parameter.requires_grad:
                whole = self.engine.weight(parameter)
                if trainer.is_global_zero:
                    weights[name] = whole.cpu()
        if trainer.is_global_zero:
            self.write(weights)
        trainer.strategy.barrier("model folder is in place")
