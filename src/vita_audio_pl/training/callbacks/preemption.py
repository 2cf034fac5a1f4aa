"""Preemption by a cluster: a signal to stop, agreed on by all ranks, followed by saving and requeueing."""

import os
import signal
import time
from types import FrameType
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vita_audio_pl.errors import peer_is_gone
from vita_audio_pl.leaving import INTERRUPTED, STATUS, TRY_AGAIN, name_of, print_now, requeue_job
from vita_audio_pl.processes import SAME_PRESS_SECONDS, leave_done, leave_with
from vita_audio_pl.training.callbacks.lifecycle import Checkpointing
from vita_audio_pl.training.step.module import SpeechLMModule

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preemption(Callback):
    """Stops at the next step boundary after SIGTERM, SIGUSR1 or Ctrl-C on any rank: saves, stops; requeues a SLURM job.

    The handler only prints and sets a flag; ranks agree on it between two steps, or two batches of a validation, where
    no collective is running. A validation in progress is cut, and run again on resuming. After the last step
    the stage is handed over despite the signal. Before the first step, `processes.announce_stop` exits at once. The
    same exchange reports a checkpoint that could not be written on one rank, so that all stop together, and one that is
    not finite, so that all roll back together. After Ctrl-C nothing is requeued; a second one exits at once.

    Attributes:
        left_at: the step that was saved; None if no signal has come.
        status: exit status to use after stopping.
    """

    def __init__(self, checkpointing: Checkpointing, requeue: bool) -> None:
        self.checkpointing, self.requeue = checkpointing, requeue
        self.left_at: int | None = None
        self.status = TRY_AGAIN
        self._signal, self._came = 0, 0.0
        self._trainer: L.Trainer | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._trainer = trainer
        self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        # Lightning's loop would ask all ranks before every micro-batch whether a signal came, and synchronise; no
        # setting turns that off
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, SpeechLMModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        signalled = self._settle(trainer, module)
        if signalled and trainer.global_step < trainer.max_steps:
            self._stop(trainer, module, signalled)
            trainer.limit_val_batches = 0  # Lightning validates before it stops, but there is little time

    def on_validation_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.global_step >= trainer.max_steps or self.left_at is not None:
            return
        [signalled] = self._agreed(trainer, self._signal)
        if signalled:  # nothing is saved before `on_validation_end`: averaged weights may be in the place of the others
            self.checkpointing.preempted = True
            trainer.sanity_checking = True  # Lightning's own callbacks leave such a validation out, and so does Monitor
            raise StopIteration  # ends Lightning's loop over the held-out batches

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        if trainer.sanity_checking:  # it was cut
            self._stop(trainer, module, self._settle(trainer, module))

    def _settle(self, trainer: L.Trainer, module: SpeechLMModule) -> int:
        """Raise on all ranks if one could not write a checkpoint, roll back if one is not finite; the agreed signal."""
        writer, guard = self.checkpointing.writer, self.checkpointing.guard
        signalled, failed, spoilt = self._agreed(trainer, self._signal, writer.failed, writer.spoilt is not None)
        if failed:
            writer.finish(failed_elsewhere=True)
        if spoilt and trainer.global_step < trainer.max_steps:  # after the last step the stage is handed over instead
            why = cast(str, trainer.strategy.broadcast(writer.spoilt))  # rank 0 prints it
            guard.roll_back(trainer, module, why)
        return signalled

    def _stop(self, trainer: L.Trainer, module: SpeechLMModule, signalled: int) -> None:
        """Save the step just done, unless it is saved, and let the run end."""
        self._save(trainer, module)
        self._settle(trainer, module)  # only now is it known whether this checkpoint is finite
        self._save(trainer, module)  # what it went back to
        self.left_at = trainer.global_step
        trainer.should_stop = self.checkpointing.preempted = True
        self.status = INTERRUPTED if signalled == signal.SIGINT else TRY_AGAIN
        if trainer.is_global_zero:
            print(f"{name_of(signalled)}: step {self.left_at} is saved; rerun the same command to resume", flush=True)

    def _save(self, trainer: L.Trainer, module: SpeechLMModule) -> None:
        self.checkpointing.save(trainer, module)
        self.checkpointing.writer.finish()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.left_at is not None and self.status == TRY_AGAIN:
            if trainer.is_global_zero and self.requeue:
                requeue_job()
            trainer.strategy.barrier("requeued")  # a rank that ends before makes srun end the others

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self._restore()
        if self.left_at is None and trainer.global_step >= trainer.max_steps:  # handed over
            leave_done()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._restore()
        if self._signal and self.left_at is None and peer_is_gone(exception):
            # a rank that had not started training has exited at once, and the others cannot continue without it
            status = STATUS[self._signal]
            leave_with(status)
            print_now(
                f"{name_of(self._signal)}: another rank has left before this step; rerun the same command to resume"
            )
            if trainer.is_global_zero and self.requeue and status != INTERRUPTED:
                requeue_job(agreed=status == TRY_AGAIN)

    def _agreed(self, trainer: L.Trainer, *here: int) -> list[int]:
        """Elementwise maximum over all ranks; collective."""
        word = torch.tensor(here, device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(word, torch.distributed.ReduceOp.MAX)
        return cast(list[int], word.tolist())

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self._signal == number == signal.SIGINT
        if again and time.monotonic() - self._came > SAME_PRESS_SECONDS:
            os._exit(INTERRUPTED)
        if not again and self.left_at is None:
            self._signal, self._came = number, time.monotonic()
            if self._trainer is not None and self._trainer.is_global_zero:
                more = " (one more ends it at once)" if number == signal.SIGINT else ""
                step, last = self._trainer.global_step, self._trainer.max_steps
                what = (
                    "the current step is finished and saved; rerun the same command to resume"
                    if step < last
                    else "the stage is handed over"
                )
                print_now(f"{name_of(number)} after step {step}: {what}{more}")

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if self.left_at is not None:
            leave_with(self.status)
