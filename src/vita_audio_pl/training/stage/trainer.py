"""The Lightning Trainer of a stage: devices, accumulation, validation."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from vita_audio_pl.config.fields import did_you_mean
from vita_audio_pl.errors import UserError
from vita_audio_pl.training.callbacks.speed import StepTimes
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.settings import TrainConfig, TrainerConfig
from vita_audio_pl.training.stage.launch import warn_while_waiting

OWNED = {
    "accelerator": "give trainer.accelerator",
    "devices": "give trainer.devices",
    "num_nodes": "give trainer.num_nodes",
    "strategy": "choose a trainer, or give trainer.engine",
    "precision": "give trainer.precision",
    "plugins": "trainer.engine and trainer.precision choose them",
    "max_steps": "give stage.steps",
    "max_epochs": "give stage.steps",
    "min_steps": "give stage.steps",
    "min_epochs": "give stage.steps",
    "max_time": "a stage ends after its steps; schedulers' time limits are caught",
    "accumulate_grad_batches": "give stage.rows_per_step and trainer.rows_per_device",
    "gradient_clip_val": "give optim.clip_norm",
    "gradient_clip_algorithm": "gradients are clipped by their norm: give optim.clip_norm",
    "val_check_interval": "give callbacks.validate_every",
    "check_val_every_n_epoch": "give callbacks.validate_every",
    "limit_val_batches": "give data.validation_rows",
    "logger": "give logger.extra",
    "callbacks": "give callbacks.extra",
    "log_every_n_steps": "give callbacks.log_every",
    "default_root_dir": "give paths.runs and run_name",
    "fast_dev_run": "give stage.steps=2",
    "overfit_batches": "data come in the order of the plan",
    "limit_train_batches": "give stage.steps",
}
"""Arguments of `lightning.Trainer` that are set through settings of this package, and which ones."""


def micro_batches(config: TrainConfig) -> tuple[int, int]:
    """Rows per forward pass on one device, and forward passes per optimiser step.

    If the step's rows do not divide evenly, the last passes have empty rows.
    """
    share = -(-config.stage.rows_per_step // config.trainer.world_size)
    per_device = min(config.trainer.rows_per_device or share, share)
    return per_device, -(-share // per_device)


def check_devices(settings: TrainerConfig) -> None:
    """Refuse a run that needs more GPUs than this machine has.

    Raises:
        UserError: with the number of GPUs.
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
    validate: bool,
    folder: Path,
) -> L.Trainer:
    """Trainer that runs the stage's optimiser steps in one endless epoch and validates every `callbacks.validate_every`.

    Args:
        folder: folder of the stage, so that Lightning finds no files of other runs.
    """
    _, accumulate = micro_batches(config)
    max_steps = config.stage.steps
    every = min(config.callbacks.validate_every or max_steps, max_steps)
    settings = config.trainer
    ours: dict[str, Any] = {
        "accelerator": settings.accelerator,
        "devices": settings.devices,
        "num_nodes": settings.num_nodes,
        "strategy": engine.strategy(),
        "plugins": [engine.precision()],
        "max_steps": max_steps,
        "max_epochs": -1,
        "accumulate_grad_batches": accumulate,
        "gradient_clip_val": config.optim.clip_norm,
        "val_check_interval": every * accumulate if validate else None,
        "check_val_every_n_epoch": None,
        "default_root_dir": folder,
        "limit_val_batches": 1.0 if validate else 0,
        "num_sanity_val_steps": 0,
        "logger": list(loggers),
        "callbacks": list(callbacks),
        "log_every_n_steps": config.callbacks.log_every,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "profiler": StepTimes(),
    }
    trainer = L.Trainer(**ours, **checked_extra(settings.extra, ours))
    # Lightning's SIGTERM handler runs a collective inside the signal handler, and its SLURM handler writes hpc_ckpt_*
    # and requeues; our handlers (`processes.announce_stop`, `callbacks.preemption`) stay installed instead
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    warn_while_waiting(trainer.strategy, settings)
    return trainer


def checked_extra(extra: Mapping[str, Any], ours: Iterable[str]) -> dict[str, Any]:
    """Validated `trainer.extra`: arguments of `lightning.Trainer` that no setting of this package decides.

    Raises:
        UserError: Lightning has no such argument, or another setting decides it.
    """
    known = inspect.signature(L.Trainer.__init__).parameters.keys() - {"self"}
    for name in extra:
        if name not in known:
            raise UserError(f"trainer.extra: lightning.Trainer takes no '{name}'{did_you_mean(name, known)}")
        if name in (*ours, *OWNED):
            way = OWNED.get(name, "it follows from other settings (--help-all)")
            raise UserError(f"trainer.extra cannot set '{name}': {way}")
    return dict(extra)
