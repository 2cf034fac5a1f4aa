"""Callbacks around a stage: resume, checkpoints, final checks and hand-over."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.callbacks.guard import StepGuard
from vita_audio_pl.training.callbacks.training_check import TrainingCheck
from vita_audio_pl.training.checkpoints.folders import (
    BAD,
    DOUBT,
    ENDED,
    GOOD,
    REASON,
    ROLLED_BACK,
    best_checkpoint,
    checkpoint_name,
    checkpoints,
    complete_checkpoints,
    mark_best,
    move_aside,
    note_step,
    noted_step,
    step_of,
)
from vita_audio_pl.training.checkpoints.loop_progress import end_training
from vita_audio_pl.training.checkpoints.restore import restore_newest, resume
from vita_audio_pl.training.checkpoints.writer import CheckpointWriter
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.step.module import SpeechLMModule
from vita_audio_pl.training.tracking.metrics_csv import MetricsCsv

SUMS = "sums"
"""What ranks keep for themselves in a checkpoint: sums of training figures since the last log entry."""
_HAND_OVER = timedelta(hours=24)  # how long ranks wait for the first to write the model folder


class Stateful(Protocol):
    """Further state that a checkpoint stores, next to weights, moments and data position."""

    def state(self) -> Any:
        """JSON values."""

    def resume_from(self, state: Any) -> None:
        """Restore a `state()`; called before training starts."""


class Resume(Callback):
    """Resumes from the last readable checkpoint. Must be the first callback: the others start from what it restores.

    Args:
        go_back_to: step of the checkpoint to resume from; newer ones are set aside.

    Raises:
        UserError: there are checkpoints, but none is usable; starting over needs an explicit command.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        engine: Engine,
        stateful: Mapping[str, Stateful],
        go_back_to: int | None = None,
    ) -> None:
        self.writer, self.engine, self.stateful, self.go_back_to = writer, engine, stateful, go_back_to

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        self.writer.prepare(trainer)
        failure = trainer.strategy.broadcast(self._roll_back() if trainer.is_global_zero else None)
        if failure is not None:
            raise UserError(failure)
        if self.writer.local is not None and trainer.local_rank == 0:
            self.writer.local.drop_newer()
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
            print(f"resuming from {checkpoint.path.name}", flush=True)
        kept = resume(checkpoint, trainer)
        module.train_tally.take_over([each.get(SUMS) for each in kept], module.device)
        trainer.datamodule.load_state_dict(checkpoint.state["data"])  # type: ignore[attr-defined]  # set by `fit`
        for name, part in self.stateful.items():
            if name in checkpoint.state:  # earlier versions stored less
                part.resume_from(checkpoint.state[name])
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.cut_after(trainer.global_step)
        if trainer.strategy.broadcast(noted_step(self.writer.folder / ENDED)) == checkpoint.step:
            end_training(trainer)  # killed before the hand-over

    def _roll_back(self) -> str | None:
        """Set aside checkpoints newer than the requested one; returns the problem, if any."""
        folder, step = self.writer.folder, self.go_back_to
        note = folder / ROLLED_BACK
        if step is None:
            note.unlink(missing_ok=True)
            return None
        if noted_step(note) == step:  # a restarted job gives the same command again
            print(f"this run was rolled back to step {step} before; to do so again, remove {note}", flush=True)
            return None
        there = checkpoints(folder, GOOD, DOUBT)
        if step not in map(step_of, there):
            listed = ", ".join(str(step_of(path)) for path in there) or "none"
            return f"callbacks.resume_from_step={step}: {folder} has no checkpoint of that step; there are {listed}"
        for path in there:
            if step_of(path) > step:
                print(
                    f"{path.name} is kept as {move_aside(path, f'the run was rolled back to step {step}')}", flush=True
                )
        (folder / ENDED).unlink(missing_ok=True)
        note_step(note, step)
        return None


def check_best_by(name: str | None, figures: Sequence[str], any_name: bool = False) -> None:
    """Refuse `keep_best_by` if validation will not log that metric.

    Args:
        figures: names of all that validation gives; none without held-out data.
        any_name: user-defined callbacks may log other metrics.

    Raises:
        UserError: with the closest names.
    """
    if name is None:
        return
    if not figures:
        raise UserError(
            f"callbacks.keep_best_by={name}: this stage has no held-out data to validate on; leave it out, or prepare some"
        )
    if name not in figures and not any_name:
        near = difflib.get_close_matches(name, figures, 3, 0.0)
        raise UserError(f"callbacks.keep_best_by={name} is not a validation metric; did you mean {' or '.join(near)}?")


class Checkpointing(Callback):
    """Saves a checkpoint every `every` optimiser steps and at the end; also keeps the best one by a validation metric.

    Args:
        guard: knows whether the present state is in doubt.
        best_by: a metric of validation, or logged by another callback; None keeps only the last checkpoints.
        best_when: "lower" or "higher"; None: higher for accuracies, lower for others.
    """

    preempted = False
    """Whether the run stops before its last step, to be resumed later."""

    def __init__(
        self,
        writer: CheckpointWriter,
        guard: StepGuard,
        stateful: Mapping[str, Stateful],
        every: int,
        best_by: str | None = None,
        best_when: str | None = None,
    ) -> None:
        self.writer, self.guard, self.stateful, self.every = writer, guard, stateful, every
        accuracy = "accuracy" in str(best_by).rpartition("/")[2]
        self.best_by, self._higher = best_by, accuracy if best_when is None else best_when == "higher"

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, SpeechLMModule)
        ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ends_step and (trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps):
            self.save(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        if self.best_by is None or self.preempted:
            return
        figures = trainer.callback_metrics
        if trainer.is_global_zero and self.best_by not in figures:
            there = ", ".join(sorted(name for name in figures if name.startswith("val/")))
            print(
                f"callbacks.keep_best_by={self.best_by}: this validation has no such metric, only {there}", flush=True
            )
        value = float(figures.get(self.best_by, math.nan))
        if not trainer.strategy.broadcast(self._is_best(value)):  # rank 0 decides for all, because saving is collective
            return
        self.save(trainer, module)
        self.writer.finish()
        step = trainer.global_step
        if trainer.is_global_zero and (self.writer.folder / checkpoint_name(step)).is_dir():  # not in a doubtful state
            mark_best(self.writer.folder, step, self.best_by, value)

    def _is_best(self, value: float) -> bool:
        if not math.isfinite(value) or self.guard.doubt:
            return False
        best = best_checkpoint(self.writer.folder)
        if best is None or best["metric"] != self.best_by:
            return True
        before: float = best["value"]
        return value > before if self._higher else value < before

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        if trainer.should_stop and not self.preempted and trainer.global_step < trainer.max_steps:
            # another callback, such as EarlyStopping, has ended the stage here
            self.save(trainer, module)
            self.writer.finish()
            if trainer.is_global_zero:
                note_step(self.writer.folder / ENDED, trainer.global_step)
                print(
                    f"stage '{module.stage.name}' was ended by a callback after step {trainer.global_step}", flush=True
                )
            end_training(trainer)
        self.writer.end(trainer)

    def save(self, trainer: L.Trainer, module: SpeechLMModule) -> None:
        """Save a checkpoint of the step just done; called on all ranks."""
        state = {"data": trainer.datamodule.state_dict()}  # type: ignore[attr-defined]  # set by `fit`
        state |= {name: part.state() for name, part in self.stateful.items()}
        own = {SUMS: module.train_tally.sums()}
        self.writer.save(trainer, module.speech_lm, state, doubt=self.guard.doubt, own=own)


class HandOver(Callback):
    """Ends a stage whose steps are done: concludes the check, and lets rank 0 `write` the model folder.

    The others wait outside the collectives' time-out, and are asked for nothing. A run that is killed meanwhile resumes from
    its last step, and writes the folder again.

    Args:
        folder: of the stage's checkpoints.

    Raises:
        UserError: weights are not finite, or cannot be written; on all ranks, so that none waits for the others.
    """

    def __init__(self, check: TrainingCheck, write: Callable[[], None], folder: Path) -> None:
        self.check, self.write, self.folder = check, write, folder

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        if trainer.global_step >= trainer.max_steps:  # killed between the last step and the hand-over: no step is left
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):
                    callback.on_train_end(trainer, module)
            self._conclude(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        if trainer.global_step >= trainer.max_steps:
            self._conclude(trainer, module)

    def _conclude(self, trainer: L.Trainer, module: SpeechLMModule) -> None:
        self.check.conclude(module)
        failure = [self._written(module) if trainer.is_global_zero else None]
        if trainer.world_size > 1:  # a large model takes longer to write than collectives may last
            waiting = torch.distributed.new_group(backend="gloo", timeout=_HAND_OVER)
            torch.distributed.broadcast_object_list(failure, group=waiting)
        if failure[0] is not None:
            raise UserError(failure[0])

    def _written(self, module: SpeechLMModule) -> str | None:
        """Write the model folder; returns the problem, if any."""
        good = complete_checkpoints(self.folder)
        again = f"rerunning the same command resumes from {good[-1].name}" if good else "force=true starts over"
        try:
            self.write()
        except (UserError, OSError) as error:
            return (
                f"stage '{module.stage.name}' is not handed over: {error}; {again} (where weights are not finite again, "
                "lower stage.learning_rate, or set callbacks.guard.spike_factor)"
            )
        return None
