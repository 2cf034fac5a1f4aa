"""Where Lightning's loop stands, set from a step number alone, so that a run resumes under another geometry."""

from typing import cast

import lightning as L
from lightning.pytorch.loops.progress import _ProcessedTracker


def set_progress(trainer: L.Trainer, step: int, accumulate: int) -> None:
    """Make `trainer` believe that it has done `step` optimiser steps of `accumulate` batches each."""
    loop = trainer.fit_loop.epoch_loop
    optimiser = loop.automatic_optimization.optim_progress.optimizer
    optimiser.step.total.ready = optimiser.step.total.completed = step
    batches = cast(_ProcessedTracker, loop.batch_progress.total)  # declared as the class that it derives from
    batches.ready = batches.started = batches.processed = batches.completed = step * accumulate
    loop._batches_that_stepped = step


def end_training(trainer: L.Trainer) -> None:
    """Make the step just done the last one."""
    trainer.fit_loop.epoch_loop.max_steps = trainer.global_step
