"""Settings that do not go together, refused before anything is built."""

from omegaconf import DictConfig, OmegaConf

from vita_audio_pl.config.schema import TrainConfig, require
from vita_audio_pl.interleave import DecodePattern, IntervalRatio

CHAIN = "chain"
SHORTEST_ROW = 16


def work_in_stage_settings(config: DictConfig) -> None:
    """Merge an ablation's steps and `per_stage.<name>` of the chosen stage into `stage`, in place.

    Attention is chosen, too, where it is left open: `flash` on GPUs in 16 bits, `per_document` elsewhere.
    """
    if config.model.attention is None:
        config.model.attention = "flash" if _on_gpus_in_16_bits(config) else "per_document"
    if config.experiment.name and config.stage.name in config.experiment.steps:
        config.stage.steps = config.experiment.steps[config.stage.name]
    overlay = config.per_stage.get(config.stage.name) or {}
    config.stage = OmegaConf.merge(config.stage, {name: value for name, value in overlay.items() if value is not None})


def check_train_config(config: TrainConfig) -> None:
    """Check the settings of several groups against one another.

    Raises:
        UserError: what does not go together, and what to change.
    """
    IntervalRatio.of(config.text_audio_interval_ratio)
    DecodePattern.of(config.decode_pattern)
    require(
        config.model.attention != "flash" or _on_gpus_in_16_bits(config),
        f"model.attention=flash computes in 16 bits on GPUs, and trainer={config.trainer.name} has accelerator="
        f"{config.trainer.accelerator} and precision={config.trainer.precision}; leave model.attention out",
    )
    variant, stage = config.variant, config.stage.name
    require(
        variant.hears_by_encoder or config.encoder.folder is None,
        f"encoder.folder={config.encoder.folder} is given, but variant={variant.name} hears codes and has no encoder; "
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
        stage == CHAIN or config.stage.sequence_length >= SHORTEST_ROW,
        f"stage.sequence_length={config.stage.sequence_length} cannot hold a conversation; give at least {SHORTEST_ROW}",
    )


def _on_gpus_in_16_bits(config: TrainConfig | DictConfig) -> bool:
    return config.trainer.accelerator != "cpu" and config.trainer.precision != "32-true"
