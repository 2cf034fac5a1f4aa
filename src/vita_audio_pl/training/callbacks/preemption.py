"""What a cluster does to a run: a signal to leave, agreed by all ranks, saved for, and requeued after."""

import os
import shutil
import signal
import subprocess
import time
from types import FrameType
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vita_audio_pl.processes import INTERRUPTED, SAME_PRESS, TRY_AGAIN, name_of, say_at_once
from vita_audio_pl.training.callbacks.lifecycle import Checkpointing
from vita_audio_pl.training.step.module import SpeechLMModule

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preemption(Callback):
    """Leaves at the next step boundary after SIGTERM, SIGUSR1 or Ctrl-C on any rank: saves, stops; requeues a SLURM job.

    The handler only says so and sets a flag; ranks agree on it between two steps, where no collective is under way. The
    same word carries a checkpoint that could not be written on one rank, so that all stop together, and one that is
    not finite, so that all go back together. After Ctrl-C nothing is requeued, and one more ends the process at once.

    Attributes:
        left_at: the step that was saved; None while nothing has come.
        status: exit status for having left there.
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
        # after Lightning has set its own, whose SIGTERM handler runs a collective inside the signal handler
        self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        # its loop would still ask all ranks before every micro-batch, and wait for the device, whether a signal came; no
        # setting turns that off
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, SpeechLMModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        writer, guard = self.checkpointing.writer, self.checkpointing.guard
        here = [self._signal, int(writer.failed), int(writer.spoilt is not None)]
        word = torch.tensor(here, device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(word, torch.distributed.ReduceOp.MAX)
        signalled, failed, spoilt = word.tolist()
        if failed:
            writer.finish(failed_elsewhere=True)
        if spoilt and trainer.global_step < trainer.max_steps:  # no step is left after the last: it is not handed over
            why = cast(str, trainer.strategy.broadcast(writer.spoilt))  # rank 0 says it
            guard.go_back(trainer, module, why)
        if signalled and trainer.global_step < trainer.max_steps:
            self.checkpointing.save(trainer, module)
            writer.finish()
            self.left_at = trainer.global_step
            trainer.should_stop = self.checkpointing.preempted = True
            by_hand = signalled == signal.SIGINT
            self.status = INTERRUPTED if by_hand else TRY_AGAIN
            if trainer.is_global_zero:
                print(
                    f"{name_of(signalled)}: step {self.left_at} is saved, the same command goes on from there",
                    flush=True,
                )
                if not by_hand:
                    self.requeue_job()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def requeue_job(self) -> None:
        """Put the SLURM job that this process belongs to, if any, back into the queue."""
        job = os.environ.get("SLURM_JOB_ID")
        if self.requeue and job and shutil.which("scontrol"):
            subprocess.run(["scontrol", "requeue", job], check=False)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self._signal == number == signal.SIGINT
        if again and time.monotonic() - self._came > SAME_PRESS:
            os._exit(INTERRUPTED)
        if not again:
            self._signal, self._came = number, time.monotonic()
            if self._trainer is not None and self._trainer.is_global_zero:
                more = " (one more ends it at once)" if number == signal.SIGINT else ""
                say_at_once(
                    f"{name_of(number)} after step {self._trainer.global_step}: the step under way is finished and saved, "
                    f"and the same command goes on from there{more}"
                )

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
