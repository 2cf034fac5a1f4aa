"""The data of a stage from the configuration: prepared where it can be made here, opened, checked."""

from pathlib import Path

from vita_audio_pl.codecs.protocol import load_codec
from vita_audio_pl.config.schema import TrainConfig
from vita_audio_pl.data.datamodule import SpeechDataModule
from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import DecodePattern, IntervalRatio
from vita_audio_pl.text import RenderOptions, TextTokenizer
from vita_audio_pl.training.stage import StageData
from vita_audio_pl.training.trainer import micro_batches


def prepared_data(config: TrainConfig, n_heads: int) -> StageData:
    """Data of the configured stage; the tokenizer and the codec lie beside the shards.

    Args:
        n_heads: heads of the stage's model, for who writes which token.

    Raises:
        UserError: not prepared, or made by another codec than the configured one.
    """
    world = Path(config.data.shards).parent
    tokenizer = TextTokenizer.load(world / "tokenizer")
    codec = load_codec(world / "codec")
    if codec.name != config.codec.name or codec.codebook_size != config.codec.codebook_size:
        raise UserError(
            f"{world} was prepared with the codec {codec.name} of {codec.codebook_size} codes, but codec={config.codec.name} "
            f"with {config.codec.codebook_size} codes is configured; choose the codec it was made with, or other data"
        )
    rows, accumulate = micro_batches(config)
    vocabulary = tokenizer.vocabulary(codec.codebook_size)
    datamodule = SpeechDataModule(
        config.data,
        vocabulary,
        tokenizer,
        RenderOptions(
            ratio=IntervalRatio.of(config.text_audio_interval_ratio),
            pattern=DecodePattern.of(config.decode_pattern),
            n_heads=n_heads,
            lead_in=tuple(int(code) for code in codec.silence(config.rendering.lead_in_codes)),
            prompt_corruption=config.rendering.prompt_corruption,
            text_weight=config.rendering.text_weight,
            audio_weight=config.rendering.audio_weight,
        ),
        rows_per_batch=rows,
        row_length=config.stage.sequence_length,
        accumulate=accumulate,
        seed=config.seed,
    )
    return StageData(
        datamodule=datamodule,
        vocabulary=vocabulary,
        tokenizer_folder=world / "tokenizer",
        tokenizer=tokenizer.fingerprint,
        codec_folder=world / "codec",
        codec=codec.name,
        codec_fingerprint=codec.fingerprint,
        source_names=datamodule.source_names,
        plan=datamodule.fingerprint,
        validates=bool(datamodule.validation_sources),
    )
