"""Checks of settings against each other, before anything is built."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose
from omegaconf import DictConfig

from vita_audio_pl.config.entry import to_dataclass
from vita_audio_pl.config.fields import require
from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import DecodePattern, IntervalRatio
from vita_audio_pl.storage.owned import below
from vita_audio_pl.training.run_folder.origin import apply_origin
from vita_audio_pl.training.settings import CHAIN, TrainConfig

SHORTEST_ROW = 16


def apply_stage_settings(config: DictConfig, given: Sequence[str] = ()) -> None:
    """Fill in `config.stage` and settings that depend on others, in place.

    Precedence of a stage's numbers, highest first: command line, experiment, `conf/numbers/<scale>/<stage>.yaml`,
    `conf/stage/<stage>.yaml`. `per_stage.<stage>` sets them for one stage of a chain; `stage.<setting>` on the command
    line overrides a `per_stage` that is not on it. For settings that follow from the starting model see
    `run_folder.origin`.

    Args:
        given: overrides of the command line, as `key=value`.

    Raises:
        UserError: the command line sets one thing twice, or contradicts the model that the stage starts from.
    """
    if config.model.attention is None:
        config.model.attention = "flash" if _on_gpus_in_16_bits(config) else "per_document"
    on_command_line = {override.partition("=")[0].lstrip("+") for override in given}
    apply_origin(config, on_command_line)
    name = config.stage.name
    for key, value in (config.per_stage.get(name) or {}).items():
        if value is None:
            continue
        if f"stage.{key}" not in on_command_line:
            config.stage[key] = value
        elif f"per_stage.{name}.{key}" in on_command_line and config.stage[key] != value:
            raise UserError(
                f"stage.{key}={config.stage[key]} and per_stage.{name}.{key}={value} say two things of one setting; give "
                "one of them"
            )
    if config.stage.epochs is not None:
        said = {key for key in ("steps", "epochs") for group in ("stage", f"per_stage.{name}")
                if f"{group}.{key}" in on_command_line}  # fmt: skip
        if len(said) == 2:
            raise UserError(
                f"stage.epochs={config.stage.epochs:g} and stage.steps={config.stage.steps} both say how long the stage "
                "trains; give one of them"
            )
        if "steps" in said:  # the command line wins over the epochs of a file
            config.stage.epochs = None


def check_train_config(config: TrainConfig) -> None:
    """Check settings of different groups against each other.

    Raises:
        UserError: the settings that contradict each other, and what to change.
    """
    below(below(Path(config.paths.runs), config.run_name, "run_name"), config.stage.name, "stage.name")
    IntervalRatio.of(config.text_audio_interval_ratio)
    DecodePattern.of(config.decode_pattern)
    require(
        config.model.attention != "flash" or _on_gpus_in_16_bits(config),
        f"model.attention=flash computes in 16 bits on GPUs, and trainer={config.trainer.name} has accelerator="
        f"{config.trainer.accelerator} and precision={config.trainer.precision}; leave model.attention out",
    )
    config.trainer.engine.check_devices(config.trainer)
    variant, stage = config.variant, config.stage.name
    require(
        variant.has_audio_encoder or config.encoder.folder is None,
        f"encoder.folder={config.encoder.folder} is given, but variant={variant.name} takes audio codes and has no encoder; "
        "choose variant=vita_audio_plus_boost or variant=vita_audio_plus_vanilla",
    )
    require(
        stage == CHAIN or stage in variant.stages or stage in variant.parents,
        f"stage={stage} is not a stage of variant={variant.name}, which takes {', '.join(variant.stages)}",
    )
    require(
        config.init_from is None or not config.with_parents,
        "init_from names the model to start from and with_parents=true trains one; give only one of them",
    )
    require(
        config.trainer.world_size == 1 or config.callbacks.watchdog_seconds < config.trainer.timeout_seconds,
        f"callbacks.watchdog_seconds={config.callbacks.watchdog_seconds:g} is not below trainer.timeout_seconds="
        f"{config.trainer.timeout_seconds:g}: a rank that hangs would end the run before it is named",
    )
    require(
        stage == CHAIN or config.stage.sequence_length >= SHORTEST_ROW,
        f"stage.sequence_length={config.stage.sequence_length} cannot hold a conversation; give at least {SHORTEST_ROW}",
    )


def _on_gpus_in_16_bits(config: TrainConfig | DictConfig) -> bool:
    return config.trainer.accelerator != "cpu" and config.trainer.precision != "32-true"


def settings_of_stage(stage: str, overrides: Sequence[str]) -> TrainConfig:
    """The configuration of one stage's own process; call inside an entry point, whose search path it uses."""
    settings = [*(override for override in overrides if not override.startswith("--")), f"stage={stage}"]
    config: TrainConfig = to_dataclass(compose("train", settings), apply_stage_settings, settings)
    return config
