"""Proof that what was frozen stayed as it was, and that what should train did."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.freezing import bunch, fingerprints
from vita_audio_pl.training.module import SpeechLMModule

PATIENCE = 20
"""Optimiser steps within which every trained tensor must have had a gradient."""


class TrainingProof(Callback):
    """Hashes every parameter when training starts and when it ends, and watches the gradients of the first steps.

    Raises:
        UserError: a trained tensor gets no gradient in the first steps; at the end, a frozen tensor has changed, or a
            trained one has not.
    """

    def __init__(self) -> None:
        self.frozen = self.trained = 0
        self._before: dict[str, str] = {}
        self._without_gradient: set[str] = set()
        self._steps_watched = 0

    def on_train_start(self, trainer: L.Trainer, module: SpeechLMModule) -> None:
        if not self._before:
            self._before = fingerprints(module.speech_lm)
        self._without_gradient = {name for name, p in module.speech_lm.named_parameters() if p.requires_grad}
        self._steps_watched = 0

    def on_before_optimizer_step(self, trainer: L.Trainer, module: SpeechLMModule, optimizer: Any) -> None:
        if not self._without_gradient:
            return
        parameters = dict(module.speech_lm.named_parameters())
        waiting = [name for name in sorted(self._without_gradient) if parameters[name].grad is not None]
        if waiting:
            largest = torch.stack([parameters[name].grad.detach().abs().max() for name in waiting])
            seen = [name for name, value in zip(waiting, largest.tolist(), strict=True) if value > 0]
            self._without_gradient.difference_update(seen)
        self._steps_watched += 1
        if self._without_gradient and self._steps_watched >= min(PATIENCE, trainer.max_steps):
            raise UserError(
                f"stage '{module.stage.name}': {bunch(sorted(self._without_gradient))} should train, but got no gradient "
                f"in {self._steps_watched} steps; freeze them, or choose an objective and a decode_pattern that use them"
            )

    def on_train_end(self, trainer: L.Trainer, module: SpeechLMModule) -> None:
        after = fingerprints(module.speech_lm)
        trains = {name: p.requires_grad for name, p in module.speech_lm.named_parameters()}
        changed = {name for name, value in after.items() if value != self._before[name]}
        moved = sorted(name for name in changed if not trains[name])
        still = sorted(name for name, training in trains.items() if training and name not in changed)
        if moved:
            raise UserError(
                f"stage '{module.stage.name}' changed frozen weights: {bunch(moved)}; nothing is handed over"
            )
        if still:
            raise UserError(
                f"stage '{module.stage.name}' ended without changing {bunch(still)}, which should train; raise "
                "stage.learning_rate or freeze them; nothing is handed over"
            )
        self.frozen, self.trained = len(trains) - len(changed), len(changed)

    def state_dict(self) -> dict[str, Any]:
        return {"before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["before"]
