"""Device utilisation: MFU, memory, and time spent waiting for data."""

import re
import time
from collections import defaultdict
from functools import cache

import lightning as L
import psutil
import torch
from lightning.pytorch.profilers import Profiler

from vita_audio_pl.training.engines.gpus import gpu_named
from vita_audio_pl.training.settings import TrainerConfig

DATA, FORWARD, BACKWARD, CLIP, OPTIMISER, SAVE = (
    "data", "forward and loss", "backward and reduce", "clip", "optimiser", "save"
)  # fmt: skip
_PHASES = {
    r".*train_dataloader_next": DATA,
    r"\[Strategy\]\w+\.training_step": FORWARD,
    r"\[Strategy\]\w+\.backward": BACKWARD,
    r"\[LightningModule\]\w+\.configure_gradient_clipping": CLIP,
    r"\[LightningModule\]\w+\.optimizer_step": OPTIMISER,
    r"\[Callback\]Checkpointing\.on_train_batch_end": SAVE,
}


class StepTimes(Profiler):
    """Adds up the seconds of each phase of training steps, without nested phases.

    On a GPU this is host time, unless `device` is set: then every phase is synchronised and gets its own time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self.device: torch.device | None = None
        self._open: list[tuple[str, float]] = []

    def start(self, action_name: str) -> None:
        if (phase := _phase(action_name)) is not None:
            self._open.append((phase, self._now()))

    def stop(self, action_name: str) -> None:
        if _phase(action_name) is not None and self._open:
            phase, started = self._open.pop()
            elapsed = self._now() - started
            self.seconds[phase] += elapsed
            if self._open:
                self.seconds[self._open[-1][0]] -= elapsed

    def summary(self) -> str:
        return ""

    def _now(self) -> float:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@cache
def _phase(action_name: str) -> str | None:
    return next((phase for pattern, phase in _PHASES.items() if re.fullmatch(pattern, action_name)), None)


def peak_flops(settings: TrainerConfig, device: torch.device) -> float | None:
    """Peak operations per second of a device; None for a CPU or a GPU that is not in the table.

    `trainer.peak_tflops` overrides it. A CPU's peak is not measured, since other processes may share the CPU.
    """
    if settings.peak_tflops is not None:
        return settings.peak_tflops * 1e12
    gpu = gpu_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if gpu is None else gpu.tflops * 1e12


def memory_in_use(device: torch.device) -> float:
    """Peak memory in GiB: of the tensors on a GPU, or of this process in host memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    held: int = psutil.Process().memory_info().rss
    return held / 2**30


def step_times_of(trainer: L.Trainer) -> StepTimes | None:
    """The profiler of a trainer from `build_trainer`."""
    profiler = getattr(trainer, "profiler", None)
    return profiler if isinstance(profiler, StepTimes) else None
