"""How well a run uses its devices: operations against their peak, memory, and the time that waits for data."""

import time

import lightning as L
import psutil
import torch
from lightning.pytorch.profilers import Profiler

from vita_audio_pl.training.engines.gpus import gpu_named
from vita_audio_pl.training.settings import TrainerConfig

_FETCH = "train_dataloader_next"


class DataWait(Profiler):
    """Adds up the seconds in which the training loop waits for its next batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._started = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith(_FETCH):
            self._started = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith(_FETCH):
            self.seconds += time.perf_counter() - self._started

    def read(self) -> float:
        """Seconds since the last reading."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def summary(self) -> str:
        return ""


def peak_flops(settings: TrainerConfig, device: torch.device) -> float | None:
    """Operations per second that a device can do at most; None for a CPU or GPU that is not in the table.

    `trainer.peak_tflops` decides where it is given. A CPU's is not guessed: a trial product says what is left of a shared one.
    """
    if settings.peak_tflops is not None:
        return settings.peak_tflops * 1e12
    gpu = gpu_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if gpu is None else gpu.tflops * 1e12


def memory_in_use(device: torch.device) -> float:
    """GiB: the most that tensors have taken of a GPU, or what this process holds of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    held: int = psutil.Process().memory_info().rss
    return held / 2**30


def data_wait_of(trainer: L.Trainer) -> DataWait | None:
    """The profiler of a trainer that `build_trainer` made."""
    profiler = getattr(trainer, "profiler", None)
    return profiler if isinstance(profiler, DataWait) else None
