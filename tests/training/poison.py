"""Steps that spoil a training."""

from collections.abc import Callable
from typing import Any

from vita_audio_pl.training.module import SpeechLMModule


def poison(steps: set[int], patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Make the loss of these optimiser steps (from 0) not a number."""
    step = SpeechLMModule.training_step

    def poisoned(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        if self.trainer.global_step in steps:
            self.last_loss = self.last_loss * float("nan")
            return loss * float("nan")
        return loss

    patch(SpeechLMModule, "training_step", poisoned)
