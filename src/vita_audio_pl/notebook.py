"""Training from Python: the objects that the command `train` builds, for notebooks."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.config.entry import register_schema, to_dataclass
from vita_audio_pl.data.datamodule import SpeechDataModule
from vita_audio_pl.train import prepare_data
from vita_audio_pl.training.checks import apply_stage_settings, check_train_config
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.stage.data import prepared_data
from vita_audio_pl.training.stage.train import find_parent, heads_of_stage, stage_module
from vita_audio_pl.training.stage.train import train_stage as _train_stage
from vita_audio_pl.training.step.module import SpeechLMModule


def train_config(*overrides: str) -> TrainConfig:
    """The settings that `python -m vita_audio_pl.train` would have with the same overrides.

    Args:
        overrides: as on the command line, such as `stage=mtp10`, `stage.steps=20`.

    Raises:
        UserError: a setting is wrong or contradicts another.
    """
    register_schema("train", TrainConfig)
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(asset_dir("conf"))):
        config: TrainConfig = to_dataclass(compose("train", list(overrides)), apply_stage_settings, overrides)
    check_train_config(config)
    return config


def open_stage(config: TrainConfig) -> tuple[SpeechLMModule, SpeechDataModule]:
    """The stage's LightningModule and DataModule, for a `lightning.Trainer` of your own.

    Without the stage's callbacks: checkpoints, the guard, the training check and the hand-over are part of
    `train` only.

    Raises:
        UserError: the data is not prepared, or the parent stage is not trained.
    """
    data = prepared_data(config, heads_of_stage(config))
    module, _ = stage_module(config, data, find_parent(config))
    assert isinstance(data.datamodule, SpeechDataModule)
    return module, data.datamodule


def train_stage(config: TrainConfig) -> Path:
    """Train the stage as the command does and return its model folder; a finished stage is not trained again.

    Raises:
        UserError: as for the command.
    """
    return _train_stage(config, prepared_data(config, heads_of_stage(config)))


__all__ = ["open_stage", "prepare_data", "train_config", "train_stage"]
