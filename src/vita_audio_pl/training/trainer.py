"""The Lightning Trainer of a stage: devices, accumulation, validation."""

from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from vita_audio_pl.config.schema import TrainConfig, TrainerConfig
from vita_audio_pl.errors import UserError
from vita_audio_pl.training.engines import Engine
from vita_audio_pl.training.speed import DataWait


def micro_batches(config: TrainConfig) -> tuple[int, int]:
    """Rows of a forward pass on one device, and how many of them make an optimiser step.

    Raises:
        UserError: the step's rows cannot be shared out evenly.
    """
    rows, ranks = config.stage.rows_per_step, config.trainer.world_size
    if rows % ranks:
        raise UserError(
            f"stage.rows_per_step={rows} cannot be shared by {ranks} devices; choose a multiple of {ranks}, or other "
            "trainer.devices"
        )
    share = rows // ranks
    per_device = config.trainer.rows_per_device or share
    if share % per_device:
        raise UserError(
            f"each of {ranks} devices takes {share} of stage.rows_per_step={rows} rows, which trainer.rows_per_device="
            f"{per_device} does not divide; choose a divisor of {share}"
        )
    return per_device, share // per_device


def check_devices(settings: TrainerConfig) -> None:
    """Refuse a run that wants more GPUs than this machine has.

    Raises:
        UserError: says how many there are.
    """
    if settings.accelerator == "cpu":
        return
    there = torch.cuda.device_count()
    if there < settings.devices:
        raise UserError(
            f"trainer={settings.name} wants {settings.devices} GPUs on each machine and this one has {there}; give "
            f"trainer.devices={there}, or choose trainer=cpu"
            if there
            else f"trainer={settings.name} wants {settings.devices} GPUs on each machine and this one has none; choose "
            "trainer=cpu, or run it where GPUs are (nvidia-smi lists them)"
        )


def build_trainer(
    config: TrainConfig,
    engine: Engine,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    *,
    max_steps: int,
    validate: bool,
) -> L.Trainer:
    """Trainer that runs `max_steps` optimiser steps in one endless epoch and validates every `callbacks.validate_every`."""
    _, accumulate = micro_batches(config)
    every = min(config.callbacks.validate_every or max_steps, max_steps)
    settings = config.trainer
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=engine.strategy(),
        plugins=[engine.precision()],
        max_steps=max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=config.optim.clip_norm,
        val_check_interval=every * accumulate if validate else None,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if validate else 0,
        num_sanity_val_steps=0,
        logger=list(loggers),
        callbacks=list(callbacks),
        log_every_n_steps=config.callbacks.log_every,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        profiler=DataWait(),
    )
