"""Progress reports: metrics to the loggers and to other callbacks, a progress bar or plain lines on the terminal."""

import sys
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vita_audio_pl.models.flops import StepFlops
from vita_audio_pl.packed import PackedBatch
from vita_audio_pl.training.callbacks.guard import StepGuard
from vita_audio_pl.training.callbacks.speed import DATA, StepTimes, memory_in_use, peak_flops, step_times_of
from vita_audio_pl.training.checkpoints.writer import CheckpointWriter
from vita_audio_pl.training.settings import TrainerConfig
from vita_audio_pl.training.step.module import SpeechLMModule


class Monitor(Callback):
    """Logs training metrics every `log_every` optimiser steps, and validation metrics after each validation.

    Args:
        log_every: optimiser steps between log entries.
        flops: operations of a step, for MFU.
        settings: name the devices' peak, if it is not in the table.
        guard: counts the skipped steps.
        writer: measures how long training waited for checkpoints.

    Attributes:
        latest: the last value of each metric; `step`: of the last log entry.
        validation: metrics of the last validation; `validated`: the step after which it ran, None before training.
    """

    def __init__(
        self, log_every: int, flops: StepFlops, settings: TrainerConfig, guard: StepGuard, writer: CheckpointWriter
    ) -> None:
        self.log_every, self.flops, self.settings, self.guard, self.writer = log_every, flops, settings, guard, writer
        self.latest: dict[str, float] = {}
        self.validation: dict[str, float] = {}
        self.step = 0
        self.validated: int | None = None
        self._validating_since = 0.0
        self._peak: float | None = None
        self._times: StepTimes | None = None
        self._read = dict.fromkeys(self._waits(), 0.0)  # `_waits` at the last log entry

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.validated is None:  # a start, or a checkpoint of an earlier version, which does not say it
            self.validated = trainer.global_step

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        self._peak = peak_flops(self.settings, module.device)
        self._times = step_times_of(trainer)
        self._read = {name: seconds + self._read[name] for name, seconds in self._waits().items()}
        module.train_tally.start_clock()

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        waits = {name: seconds - self._read[name] for name, seconds in self._waits().items()}
        return {"validated": self.validated, "waits": waits}

    def resume_from(self, state: dict[str, Any]) -> None:
        """Restore the `state()` of a checkpoint."""
        self.validated = state["validated"]
        waits = state.get("waits", {})  # earlier versions did not store them
        self._read = {name: -waits.get(name, 0.0) for name in self._read}

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        assert isinstance(module, SpeechLMModule)
        step = trainer.global_step
        ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not ends_step or (step % self.log_every and step != trainer.max_steps):
            return
        tally = module.train_tally
        figures = tally.read("train", reduce=trainer.world_size > 1, device=module.device)
        figures |= self._speed(trainer, module)
        figures["skipped_steps"] = self.guard.skipped
        for group in trainer.optimizers[0].param_groups:
            figures[f"lr/{group['name']}"] = group["lr"]
        norm = module.engine.norm_of_last_step(module)
        if norm is not None:
            figures["grad_norm"] = float(norm)
        figures |= {f"position/{name}": value for name, value in batch.position.items() if _is_number(value)}
        self._log(trainer, figures, step)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        for tally in (module.val_tally, *module.val_tallies.values()):
            tally.restart()
        self._validating_since = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        if not trainer.sanity_checking:  # set where a signal has cut it
            shared = trainer.world_size > 1
            figures = module.val_tally.read("val", shared, module.device)
            for name, tally in module.val_tallies.items():  # in the same order on every rank: reading is collective
                figures |= tally.read(f"val/{name}", shared, module.device)
            self.validation = figures
            self.validated = trainer.global_step
            self._log(trainer, figures, trainer.global_step)
        module.train_tally.leave_out(time.perf_counter() - self._validating_since)

    def _speed(self, trainer: L.Trainer, module: SpeechLMModule) -> dict[str, float]:
        """Device utilisation between the last two readings."""
        tally = module.train_tally
        waits = self._waits()
        figures = {f"{name}_wait_share": min(1.0, (waits[name] - self._read[name]) / tally.seconds) for name in waits}
        self._read = waits
        figures["memory_gib"] = memory_in_use(module.device)
        if tally.work is not None:
            rate = self.flops.of(tally.work) / tally.seconds / trainer.world_size
            figures["tflops_per_device"] = rate / 1e12
            if self._peak is not None:
                figures["mfu"] = rate / self._peak
        return figures

    def _waits(self) -> dict[str, float]:
        """Seconds that this run has waited for data and for checkpoints."""
        return {"data": 0.0 if self._times is None else self._times.seconds[DATA], "checkpoint": self.writer.stalled}

    def _log(self, trainer: L.Trainer, figures: dict[str, float], step: int) -> None:
        self.latest |= figures
        self.step = step
        trainer.callback_metrics.update(
            {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}
        )
        for logger in trainer.loggers:
            logger.log_metrics(figures, step)


class DueValidation(Callback):
    """Runs the validation of the step that a run resumes from, where the run was stopped before its end.

    It must come after the callbacks that hear of it, and before `HandOver`.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step >= trainer.max_steps:  # no step is left, so training does not start
            self._validate(trainer)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._validate(trainer)

    def _validate(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        if not step or not trainer.enable_validation or self.monitor.validated == step:
            return
        if step * trainer.accumulate_grad_batches % int(trainer.val_check_interval) == 0:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True


class ProgressReport(Callback):
    """A progress bar on a terminal; elsewhere a line about every 5 % of the stage."""

    def __init__(self, monitor: Monitor, title: str) -> None:
        self.monitor, self.title = monitor, title
        self._bar: Progress | None = None
        self._started, self._first_step, self._printed = 0.0, 0, 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._started, self._first_step = time.perf_counter(), trainer.global_step
        self._printed = self._first_step
        if trainer.is_global_zero and sys.stdout.isatty():
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                       TimeRemainingColumn(), TextColumn("{task.fields[figures]}", markup=False))  # fmt: skip
            self._bar = Progress(*columns, refresh_per_second=4)
            self._task = self._bar.add_task(self.title, total=trainer.max_steps, figures="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=self._figures())
        elif step - self._printed >= trainer.max_steps / 20 and step == self.monitor.step:
            self._printed = step
            pace = (time.perf_counter() - self._started) / max(1, step - self._first_step)
            left = pace * (trainer.max_steps - step)
            print(f"{self.title}  step {step}/{trainer.max_steps}  {self._figures()}  {left:.0f} s left", flush=True)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _figures(self) -> str:
        latest = self.monitor.latest
        shown = {"loss": "train/loss", "accuracy": "train/accuracy_main", "head 0": "train/accuracy_head_0",
                 "preferred": "train/reward_accuracy"}  # fmt: skip
        parts = [f"{name} {latest[key]:.3f}" for name, key in shown.items() if key in latest]
        if "mfu" in latest:
            parts.append(f"MFU {latest['mfu']:.0%}")
        if "tokens_per_second" in latest:
            parts.append(f"{latest['tokens_per_second']:,.0f} tokens/s")
        return "  ".join(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not isinstance(value, torch.Tensor)
