"""The speech language model as a LightningModule: step, optimiser, schedule."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from vita_audio_pl.models.objectives import HeadLosses, Objective
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.packed import PackedBatch
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.settings import OptimConfig, StageConfig
from vita_audio_pl.training.step.optimiser import PEAK, parameter_groups
from vita_audio_pl.training.step.tally import Tally


class SpeechLMModule(L.LightningModule):
    """Trains `speech_lm` under `objective`.

    The objective divides by the labels of the whole global step, so the step's loss is the SUM over ranks and
    micro-batches. Engines and Lightning average instead; `training_step` undoes that.

    Args:
        speech_lm: the model, with frozen parameters set up.
        objective: the training objective.
        stage: learning rates, steps and weight decay.
        optim: the optimiser and its schedule.
        engine: how the model is distributed over devices.
        source_names: names of the data sources by number, for the log.
        codes: first audio code id and one past the last; codes_per_second: rate of the codec; for the log.
        fill: loads the weights of a meta `speech_lm` onto a device after it has been sharded.
    """

    def __init__(
        self,
        speech_lm: SpeechLM,
        objective: Objective,
        stage: StageConfig,
        optim: OptimConfig,
        engine: Engine,
        source_names: tuple[str, ...] = (),
        codes: tuple[int, int] | None = None,
        codes_per_second: float = 12.5,
        fill: Callable[[torch.device], None] | None = None,
    ) -> None:
        super().__init__()
        self.speech_lm = speech_lm
        self.objective = objective
        self.stage, self.optim = stage, optim
        self.train_tally = Tally(speech_lm.n_heads, source_names, codes, codes_per_second)
        self.val_tally = Tally(speech_lm.n_heads)
        self.val_tallies = {
            name: Tally(speech_lm.n_heads) for name in source_names
        }  # validation batches have one source each
        self.grad_norm: Tensor | None = None
        self.last_loss: Tensor = torch.zeros(())
        self.skip_reason: Callable[[float], str | None] = never_skipped
        self.engine, self._sharded, self._fill = engine, False, fill
        self.rate_factor = optim.schedule.build(stage.steps)

    def __getstate__(self) -> dict[str, Any]:
        """State of a copy, as made for weight averaging: a copy takes no steps and needs no guard."""
        return {**super().__getstate__(), "skip_reason": never_skipped}

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        # total: () with gradient, divided by the labels of the whole step
        losses: HeadLosses = self.speech_lm(batch, self.objective)
        accumulate = self.trainer.accumulate_grad_batches
        self.train_tally.add(losses, batch, ends_step=(batch_idx + 1) % accumulate == 0)
        # advances the data position that checkpoints store
        self.trainer.datamodule.consumed(batch)  # type: ignore[attr-defined]  # set by `fit`, not declared
        self.last_loss = losses.total.detach()
        # engine and Lightning average over ranks and micro-batches, but the step's loss is their sum
        return losses.total * self.engine.averaging(accumulate)

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        losses = self.speech_lm(batch, self.objective, score_frozen_backbone=True)
        self.val_tally.add(losses, batch)
        source = int(batch.sources.max())
        if source >= 0:
            list(self.val_tallies.values())[source].add(losses, batch)

    def on_validation_end(self) -> None:
        self.engine.reshard(self.speech_lm)  # what is still gathered has the precision of compute, not of the weights

    def configure_model(self) -> None:
        if not self._sharded:  # Lightning calls this again for every fit or validation
            self.engine.shard(self.speech_lm, self)
            if self._fill is not None:
                self._fill(self.trainer.strategy.root_device)
            self._sharded = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = parameter_groups(
            self.speech_lm, self.stage.learning_rate, self.stage.head_rate_factor, self.stage.weight_decay
        )
        optimizer: torch.optim.Optimizer = self.optim.optimizer.build(groups, fused=self.engine.fused)
        self.engine.check_optimizer(optimizer)
        return optimizer

    def on_train_batch_start(self, batch: PackedBatch, batch_idx: int) -> None:
        self.engine.begin_batch(self.speech_lm, (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0)
        factor = self.rate_factor(self.trainer.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group[PEAK] * factor

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        self.grad_norm = self.engine.clip(self, optimizer, self.optim.clip_norm)
        if self.grad_norm is not None and self.skip_reason(float(self.grad_norm)) is not None:
            self.engine.drop_gradients(optimizer)


def never_skipped(norm: float) -> str | None:
    """The default guard: no step is skipped."""
    return None
