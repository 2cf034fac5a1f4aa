"""Steps that spoil a training."""

import math
from collections.abc import Callable
from typing import Any

import torch

from vita_audio_pl.training.step.module import SpeechLMModule

UNSEEN = 55
"""A token that no batch holds after `plant`."""


def poison(steps: set[int], patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Make the loss of these optimiser steps (from 0) not a number."""
    poison_where(lambda trainer: trainer.global_step in steps, patch)


def poison_where(bad: Callable[[Any], bool], patch: Callable[[Any, str, Any], None]) -> None:
    """Make the loss of the steps for which `bad(trainer)` holds not a number."""
    step = SpeechLMModule.training_step

    def poisoned(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        if bad(self.trainer):
            self.last_loss = self.last_loss * float("nan")
            return loss * float("nan")
        return loss

    patch(SpeechLMModule, "training_step", poisoned)


def plant(step: int, patch: Callable[[Any, str, Any], None], name: str = "model.embed_tokens.weight") -> None:
    """Spoil a row of a parameter once, before optimiser step `step` (from 0).

    No batch holds the token `UNSEEN`: where the embeddings are not tied, no gradient shows what is in its row.
    """
    planted: list[int] = []

    def seeing(plain):
        def stepped(self, batch, batch_idx):
            batch.input_ids[batch.input_ids == UNSEEN] -= 1
            batch.labels[batch.labels == UNSEEN] -= 1
            if self.trainer.training and self.trainer.global_step == step and not planted:
                planted.append(step)
                with torch.no_grad():
                    self.speech_lm.get_parameter(name)[UNSEEN if "embed" in name else 0] = math.inf
            return plain(self, batch, batch_idx)

        return stepped

    for method in ("training_step", "validation_step"):
        patch(SpeechLMModule, method, seeing(getattr(SpeechLMModule, method)))
