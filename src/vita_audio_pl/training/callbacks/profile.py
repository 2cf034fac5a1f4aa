"""Profiling of some steps: torch's trace, time per phase, and on GPUs a snapshot of the memory."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vita_audio_pl.storage.files import write_json
from vita_audio_pl.training.callback_settings import ProfileConfig
from vita_audio_pl.training.callbacks.speed import step_times_of

FORMAT = 1


class Profile(Callback):
    """Profiles the steps and ranks that `settings` names. Must be the last callback, to include the others' work.

    Writes per rank to `folder`: `step-<n>.rank-<r>.trace.json` (chrome://tracing, Perfetto),
    `step-<n>.rank-<r>.times.json` (seconds per phase; the GPU is synchronised at the start and end of each phase), and
    on GPUs `step-<n>.rank-<r>.memory.pickle` (torch.cuda.memory's snapshot, for torch's memory viewer).
    """

    def __init__(self, settings: ProfileConfig, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self._profile: torch.profiler.profile | None = None
        self._last, self._started = 0, 0.0
        self._before: dict[str, float] = {}

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        first = self.settings.at_step
        times = step_times_of(trainer)
        if (
            first is None
            or times is None
            or self._profile is not None
            or trainer.global_step != first - 1
            or batch_idx % trainer.accumulate_grad_batches
            or trainer.global_rank not in self.settings.ranks
        ):
            return
        on_gpu = module.device.type == "cuda"
        activities = [torch.profiler.ProfilerActivity.CPU]
        if on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history()
        self._last = first - 1 + self.settings.steps
        times.device, self._before, self._started = module.device, dict(times.seconds), time.perf_counter()
        self._profile = torch.profiler.profile(activities=activities, record_shapes=True)
        self._profile.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ends_step and trainer.global_step in (self._last, trainer.max_steps):
            self._end(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._end(trainer, module)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        times = step_times_of(trainer)
        if self._profile is None or times is None:
            return
        self._profile.stop()
        seconds = time.perf_counter() - self._started
        times.device = None
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / f"step-{self.settings.at_step:06d}.rank-{trainer.global_rank}"
        self._profile.export_chrome_trace(f"{place}.trace.json")
        self._profile = None
        if module.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(f"{place}.memory.pickle")
            torch.cuda.memory._record_memory_history(enabled=None)
        phases = {phase: after - self._before.get(phase, 0.0) for phase, after in times.seconds.items()}
        phases["rest"] = max(0.0, seconds - sum(phases.values()))
        write_json(
            Path(f"{place}.times.json"),
            {"format": FORMAT, "steps": self.settings.steps, "seconds": seconds, "phases": phases},
        )
        told = ", ".join(f"{phase} {100 * part / seconds:.0f} %" for phase, part in phases.items())
        print(f"profile of {self.settings.steps} steps, {seconds:.2f} s: {told}; in {place}.*", flush=True)
