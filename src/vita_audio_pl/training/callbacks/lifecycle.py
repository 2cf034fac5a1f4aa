"""Callbacks around a stage's training: resume and checkpoints before and during it, proof and hand-over at its end."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.callbacks.guard import StepGuard
from vita_audio_pl.training.callbacks.monitor import Monitor
from vita_audio_pl.training.callbacks.proof import TrainingProof
from vita_audio_pl.training.checkpoints.folders import (
    BAD,
    DOUBT,
    GOOD,
    REASON,
    best_checkpoint,
    checkpoint_name,
    checkpoints,
    complete_checkpoints,
    mark_best,
)
from vita_audio_pl.training.checkpoints.restore import restore_newest, resume
from vita_audio_pl.training.checkpoints.writer import CheckpointWriter
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.step.module import SpeechLMModule
from vita_audio_pl.training.step.tally import validation_figures
from vita_audio_pl.training.tracking.metrics_csv import MetricsCsv


class Stateful(Protocol):
    """What a checkpoint carries beside weights, moments and data position."""

    def state(self) -> Any:
        """JSON values."""

    def resume_from(self, state: Any) -> None:
        """Take over a `state()`; called before training starts."""


class Resume(Callback):
    """Goes on from the last checkpoint that can be read. Must stand first: the other callbacks start from what it restores.

    Raises:
        UserError: there are checkpoints, and none of them can be used: starting over is not this callback's to decide.
    """

    def __init__(self, writer: CheckpointWriter, engine: Engine, stateful: Mapping[str, Stateful]) -> None:
        self.writer, self.engine, self.stateful = writer, engine, stateful

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        self.writer.prepare(trainer)
        checkpoint = restore_newest(
            trainer, self.writer.folder, GOOD, DOUBT, model=module.speech_lm, engine=self.engine
        )
        if checkpoint is None:
            bad = trainer.strategy.broadcast([path.name for path in checkpoints(self.writer.folder, BAD)])
            if bad:
                raise UserError(
                    f"none of the checkpoints in {self.writer.folder} can be used ({', '.join(bad)}: each holds a {REASON}); "
                    "restore one under its name step-<number>.ckpt, or start over with force=true"
                )
            return
        if trainer.is_global_zero:
            print(f"going on from {checkpoint.path.name}", flush=True)
        resume(checkpoint, trainer)
        trainer.datamodule.load_state_dict(checkpoint.state["data"])  # type: ignore[attr-defined]  # set by `fit`
        for name, part in self.stateful.items():
            part.resume_from(checkpoint.state[name])
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.cut_after(trainer.global_step)


def check_best_by(name: str | None, n_heads: int, held_out: Sequence[str]) -> None:
    """Refuse to keep the best checkpoint by what validation will not give.

    Args:
        held_out: sources with held-out data.

    Raises:
        UserError: with the names that come nearest.
    """
    if name is None:
        return
    if not held_out:
        raise UserError(
            f"callbacks.keep_best_by={name}: this stage has no held-out data to validate on; leave it out, or prepare some"
        )
    figures = validation_figures(n_heads, held_out)
    if name not in figures:
        near = difflib.get_close_matches(name, figures, 3, 0.0)
        raise UserError(f"callbacks.keep_best_by={name} is no figure of validation; did you mean {' or '.join(near)}?")


class Checkpointing(Callback):
    """Writes a checkpoint every `every` optimiser steps and at the end; keeps the best by a figure of validation, too.

    Args:
        guard: says whether the state that is saved is in doubt.
        best_by: the figure, of `monitor`; None keeps the last alone. Of accuracies more is better, of losses less.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        guard: StepGuard,
        stateful: Mapping[str, Stateful],
        every: int,
        monitor: Monitor,
        best_by: str | None = None,
    ) -> None:
        self.writer, self.guard, self.stateful, self.every = writer, guard, stateful, every
        self.monitor, self.best_by = monitor, best_by

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, SpeechLMModule)
        ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ends_step and (trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps):
            self.save(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        if self.best_by is None:
            return
        if trainer.is_global_zero and self.best_by not in self.monitor.validation:
            there = ", ".join(sorted(self.monitor.validation))
            print(
                f"callbacks.keep_best_by={self.best_by}: this validation has no such figure, only {there}", flush=True
            )
        if not trainer.strategy.broadcast(self._is_best()):  # rank 0 decides for all: to save is collective
            return
        self.save(trainer, module)
        self.writer.finish()
        step = trainer.global_step
        if trainer.is_global_zero and (self.writer.folder / checkpoint_name(step)).is_dir():  # not where it was spoilt
            mark_best(self.writer.folder, step, self.best_by, self.monitor.validation[self.best_by])

    def _is_best(self) -> bool:
        value = self.monitor.validation.get(self.best_by or "")
        if value is None or not math.isfinite(value) or self.guard.doubt:
            return False
        best = best_checkpoint(self.writer.folder)
        if best is None or best["metric"] != self.best_by:
            return True
        before: float = best["value"]
        return value > before if "accuracy" in str(self.best_by).rpartition("/")[2] else value < before

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.writer.end(trainer)

    def save(self, trainer: L.Trainer, module: SpeechLMModule) -> None:
        """Write a checkpoint of the step just done; all ranks call it."""
        state = {"data": trainer.datamodule.state_dict()}  # type: ignore[attr-defined]  # set by `fit`
        state |= {name: part.state() for name, part in self.stateful.items()}
        self.writer.save(trainer, module.speech_lm, state, doubt=self.guard.doubt)


class HandOver(Callback):
    """Ends a stage whose steps are done: concludes the proof, and gives the trained weights to `write` on rank 0.

    Args:
        folder: of the stage's checkpoints.

    Raises:
        UserError: weights are not finite, or cannot be written; on all ranks, so that none waits for the others.
    """

    def __init__(
        self, engine: Engine, proof: TrainingProof, write: Callable[[dict[str, Tensor]], None], folder: Path
    ) -> None:
        self.engine, self.proof, self.write, self.folder = engine, proof, write, folder

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        if trainer.global_step >= trainer.max_steps:  # killed between the last step and the hand-over: no step is left
            self._conclude(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
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
        failure = trainer.strategy.broadcast(self._written(module, weights) if trainer.is_global_zero else None)
        if failure is not None:
            raise UserError(failure)

    def _written(self, module: SpeechLMModule, weights: dict[str, Tensor]) -> str | None:
        """Write the model folder; what went wrong."""
        good = complete_checkpoints(self.folder)
        again = f"the same command goes on from {good[-1].name}" if good else "force=true starts over"
        try:
            self.write(weights)
        except (UserError, OSError) as error:
            return (
                f"stage '{module.stage.name}' is not handed over: {error}; {again} (where weights are not finite again, "
                "lower stage.learning_rate, or set callbacks.guard.spike_factor)"
            )
        return None
