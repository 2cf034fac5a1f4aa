"""Checks that frozen weights are bit-identical at the end of a stage, and that trained ones changed."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.engines.base import WEIGHT, Engine
from vita_audio_pl.training.step.freezing import bunch, fingerprint
from vita_audio_pl.training.step.module import SpeechLMModule

PATIENCE = 20
"""Optimiser steps within which every trained tensor must receive a gradient."""
_ROUNDED_AWAY = " or choose trainer.precision=bf16-mixed, whose weights are float32"


class TrainingCheck(Callback):
    """Hashes every parameter at the start and end of a stage, and checks for gradients after the first steps.

    Whole tensors are hashed, so the result is the same under every engine and on every rank.

    Raises:
        UserError: a trained tensor got no gradient in the first steps; at the end, a frozen tensor has changed, or no
            trained one has.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.frozen = self.trained = 0
        self._before: dict[str, str] = {}
        self._at_start: dict[str, str] = {}

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        # after a resume, trained tensors are compared with the stage's start and frozen ones with the parent
        self._before = self._fingerprints(module) | self._at_start
        self._at_start = {name: self._before[name] for name, p in _parameters(module) if p.requires_grad}

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, SpeechLMModule)
        ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not ends_step or trainer.global_step != min(PATIENCE, trainer.max_steps):
            return
        held = self.engine.held(module.speech_lm, trainer.optimizers[0])
        moved = torch.zeros(len(held), dtype=torch.int32, device=module.device)
        for number, each in enumerate(held.values()):
            moved[number] = any(bool(value.any()) for kind, value in each.tensors.items() if kind != WEIGHT)
        if trainer.world_size > 1:  # each rank checks what it holds
            torch.distributed.all_reduce(moved, torch.distributed.ReduceOp.MAX)
        idle = [name for name, any_moved in zip(held, moved.tolist(), strict=True) if not any_moved]
        if idle:
            raise UserError(
                f"stage '{module.stage.name}': {bunch(idle)} should train, but got no gradient in {trainer.global_step} "
                "steps; freeze them, or choose an objective and a decode_pattern that use them"
            )

    def conclude(self, module: SpeechLMModule) -> None:
        """Compare all parameters with the start and count them; names trained tensors that did not change."""
        after = self._fingerprints(module)
        trains = {name: p.requires_grad for name, p in _parameters(module)}
        changed = {name for name, value in after.items() if value != self._before[name]}
        moved = sorted(name for name in changed if not trains[name])
        still = sorted(name for name, training in trains.items() if training and name not in changed)
        if moved:
            raise UserError(f"stage '{module.stage.name}' changed frozen weights: {bunch(moved)}; no model is written")
        if not changed:
            raise UserError(
                f"stage '{module.stage.name}' ended without changing any weight; raise stage.learning_rate{_ROUNDED_AWAY}, "
                "and start over with force=true; no model is written"
            )
        if still and module.trainer.is_global_zero:
            print(
                f"stage '{module.stage.name}': {bunch(still)} trained, but did not change: its updates were smaller "
                f"than its precision; if it should change, raise stage.learning_rate{_ROUNDED_AWAY}",
                flush=True,
            )
        self.trained = len(changed)
        self.frozen = len(trains) - sum(trains.values())

    def state(self) -> dict[str, str]:
        """Hashes of the trained tensors at the stage's start, for a checkpoint."""
        return self._at_start

    def resume_from(self, state: dict[str, str]) -> None:
        """Restore the `state()` of a checkpoint; call before training starts."""
        self._at_start = dict(state)

    def _fingerprints(self, module: SpeechLMModule) -> dict[str, str]:
        """Hashes by name, on every rank. Each is computed by one rank, while all gather the following tensors."""
        rank, ranks = module.trainer.global_rank, module.trainer.world_size
        making: dict[str, Future[str]] = {}
        latest: Future[str] | None = None
        with ThreadPoolExecutor(max_workers=1) as pool:
            for number, (name, parameter) in enumerate(_parameters(module)):
                whole = self.engine.weight(parameter)
                if number % ranks == rank:
                    if latest is not None:
                        latest.result()  # a rank holds one whole tensor at a time
                    making[name] = latest = pool.submit(fingerprint, whole.cpu())
        shares = [{name: hashed.result() for name, hashed in making.items()}]
        if ranks > 1:
            own, shares = shares[0], [{}] * ranks
            torch.distributed.all_gather_object(shares, own)
        return {name: value for share in shares for name, value in share.items()}


def _parameters(module: SpeechLMModule) -> list[tuple[str, Any]]:
    return list(module.speech_lm.named_parameters())
