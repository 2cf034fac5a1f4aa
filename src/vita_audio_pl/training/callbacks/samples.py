"""Held-out prompts that the model answers during training: audio and text, next to the curves."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vita_audio_pl.training.callbacks.warn_once import WarnOnce
from vita_audio_pl.training.checkpoints.rng import random_state_kept
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.engines.whole_model import plain_model, whole_weights
from vita_audio_pl.training.run_folder.layout import sample_folder
from vita_audio_pl.training.settings import LoraConfig
from vita_audio_pl.training.step.module import SpeechLMModule
from vita_audio_pl.training.tracking.loggers import log_samples

if TYPE_CHECKING:  # it needs the evaluation packages, which training does not require
    from vita_audio_pl.training.callbacks.sample_writer import SampleWriter


class Samples(Callback):
    """Lets the model answer its prompts every `every` optimiser steps and after the last one.

    The weights are gathered on rank 0, which answers while the other ranks wait. Training is not affected: random
    state is restored, and failures are logged and ignored.

    Args:
        every: optimiser steps.
        engine: engine of the run.
        lora: adapters of the model.
        folder: folder of the stage's samples.
        make_writer: called once on rank 0, when the first samples are due.
    """

    def __init__(
        self, every: int, engine: Engine, lora: LoraConfig, folder: Path, make_writer: Callable[[], "SampleWriter"]
    ) -> None:
        self.every, self.engine, self.lora, self.folder, self.make_writer = every, engine, lora, folder, make_writer
        self._writer: SampleWriter | None = None
        self._warn = WarnOnce()

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        # killed after the checkpoint of this step and before its samples
        step = trainer.global_step
        if trainer.strategy.broadcast(self._due(trainer) and not sample_folder(self.folder, step).is_dir()):
            self._sample(trainer, module)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, SpeechLMModule)
        ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ends_step and self._due(trainer) and not trainer.should_stop:  # a resumed run catches up
            self._sample(trainer, module)

    def _due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        return step > 0 and (step % self.every == 0 or step == trainer.max_steps)

    def _sample(self, trainer: L.Trainer, module: SpeechLMModule) -> None:
        started = time.perf_counter()
        with random_state_kept():
            on_gpu = module.device.type == "cuda"
            weights = whole_weights(
                module.speech_lm, self.engine, trainer.is_global_zero, torch.bfloat16 if on_gpu else None
            )
            if trainer.is_global_zero:
                with self._whatever_happens():
                    self._write(trainer, module, weights, started)
                if on_gpu:
                    torch.cuda.empty_cache()  # for the next step's activations
            trainer.strategy.barrier("samples are written")
        module.train_tally.leave_out(time.perf_counter() - started)

    def _write(
        self, trainer: L.Trainer, module: SpeechLMModule, weights: dict[str, torch.Tensor], started: float
    ) -> None:
        self._writer = self._writer or self.make_writer()
        model = plain_model(module.speech_lm.config, self.lora, weights, module.device)
        answered = self._writer.answer(model, trainer.global_step, module.device)
        figures = answered.figures | {"samples/seconds": time.perf_counter() - started}
        log_samples(trainer.loggers, answered.rows, figures, answered.folder, trainer.global_step)
        answered.publish()  # last, so that samples which are there were logged, too

    @contextmanager
    def _whatever_happens(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._warn("there are no samples", error)
