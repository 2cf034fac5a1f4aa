"""The data of a stage from the configuration: prepared where it can be made here, opened, checked."""

from dataclasses import replace
from pathlib import Path

from vita_audio_pl.codecs.protocol import Codec, load_codec
from vita_audio_pl.data.datamodule import SpeechDataModule
from vita_audio_pl.data.prepared import MANIFEST, nothing_prepared, prepared_names
from vita_audio_pl.data.staging import beside, shards_place, tokenizer_there
from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import DecodePattern, IntervalRatio
from vita_audio_pl.models.released import ENCODER_FOLDER
from vita_audio_pl.models.sensevoice import load_front_end
from vita_audio_pl.models.sensevoice_frontend import CMVN, SenseVoiceFrontEnd
from vita_audio_pl.storage.model_folders import part_of
from vita_audio_pl.text import RenderOptions, TextTokenizer
from vita_audio_pl.training.callbacks.sample_prompts import sample_prompts
from vita_audio_pl.training.run_folder.layout import stage_folder
from vita_audio_pl.training.run_folder.manifest import StageManifest
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.stage.starting_model import check_pretrained_tokenizer, encoder_folder
from vita_audio_pl.training.stage.train import StageData, find_parent
from vita_audio_pl.training.stage.trainer import micro_batches


def prepared_data(config: TrainConfig, n_heads: int) -> StageData:
    """Data of the configured stage; the tokenizer and the codec lie beside the shards.

    Args:
        n_heads: heads of the stage's model, for who writes which token.

    Raises:
        UserError: not prepared, or made by another codec than the configured one.
    """
    shards = shards_place(config.data)
    if isinstance(shards, Path) and not shards.is_dir():
        raise UserError(
            f"there is no folder {shards}, whose shards data.shards asks for: prepare a corpus there, or leave data.shards out "
            f"with data.spoken_world=full, and the small spoken world is made in {config.data.world_folder}"
        )
    if isinstance(shards, Path) and not any(prepared_names(shards)):
        raise UserError(nothing_prepared(shards))
    text_folder, codec_folder = tokenizer_there(config.data), beside(config.data, "codec")
    if not isinstance(shards, Path) and not codec_folder.exists():
        raise UserError(
            f"there is no codec beside {shards}: put the one that they were prepared with at {shards.parent / 'codec'}"
        )
    tokenizer = TextTokenizer.load(text_folder)
    check_pretrained_tokenizer(config, tokenizer)
    codec = load_codec(codec_folder)
    if codec.name != config.codec.name or codec.codebook_size != config.codec.codebook_size:
        raise UserError(
            f"{shards} was prepared with the codec {codec.name} of {codec.codebook_size} codes, but codec={config.codec.name} "
            f"with {config.codec.codebook_size} codes is configured; choose the codec it was made with, or other data"
        )
    rows, accumulate = micro_batches(config)
    front_end = stage_front_end(config)
    vocabulary = tokenizer.vocabulary(codec.codebook_size, continuous_input=front_end is not None)
    datamodule = SpeechDataModule(
        config.data,
        vocabulary,
        tokenizer,
        render_options(config, codec, n_heads),
        rows_per_batch=rows,
        row_length=config.stage.sequence_length,
        accumulate=accumulate,
        rows_per_step=config.stage.rows_per_step,
        seed=config.seed,
        front_end=front_end,
    )
    check_pairs(config, datamodule)
    for source in datamodule.sources:
        made_by = source.manifest.codec.get("fingerprint")
        if source.manifest.codes and made_by != codec.fingerprint:
            raise UserError(
                f"the codes of '{source.name}' were made by another codec {codec.name} ({made_by}) than the one beside "
                f"{shards} ({codec.fingerprint}): put the codec there that they were made with, or prepare the source again"
            )
    if config.stage.epochs is not None:
        config.stage.steps = steps_of_epochs(config, config.stage.epochs, datamodule)
    samples = config.callbacks.samples
    capacity = config.model.max_position_embeddings - samples.token_limit
    return StageData(
        datamodule=datamodule,
        vocabulary=vocabulary,
        tokenizer_folder=text_folder,
        tokenizer=tokenizer.fingerprint,
        codec_folder=codec_folder,
        codec=codec.name,
        codec_fingerprint=codec.fingerprint,
        codes_per_second=codec.codes_per_second,
        source_names=datamodule.source_names,
        plan=datamodule.fingerprint,
        held_out=tuple(datamodule.source_names[number] for number in datamodule.validation_sources),
        manifests={source.name: source.folder / MANIFEST for source in datamodule.sources},
        front_end=front_end,
        prompts=() if samples.every_steps == 0 else sample_prompts(samples, datamodule, tokenizer, capacity),
    )


def steps_of_epochs(config: TrainConfig, epochs: float, data: SpeechDataModule) -> int:
    """Optimiser steps of so many epochs; a run that was begun keeps its number, whatever is quarantined since."""
    folder = stage_folder(config, config.stage.name)
    begun = {} if config.force else folder.last_settings()
    if begun.get("epochs") == epochs:
        return int(begun["steps"])
    return data.steps_of(epochs)


def check_pairs(config: TrainConfig, data: SpeechDataModule) -> None:
    """Refuse pairs of answers where single ones are trained on, and the other way round.

    Raises:
        UserError: says which source does not fit.
    """
    wrong = next((source for source in data.sources if source.holds_pairs != config.stage.on_pairs), None)
    if wrong is not None and config.stage.on_pairs:
        raise UserError(
            f"stage '{config.stage.name}' trains on pairs of answers (stage.beta), and '{wrong.name}' in {config.data.folder} has "
            "single ones; give data.shards=DIR/shards and stage.mixture=DIR/mixture.yaml of pairs (docs/preference.md)"
        )
    if wrong is not None:
        raise UserError(
            f"'{wrong.name}' in {config.data.folder} holds pairs of answers, which stage '{config.stage.name}' does not train "
            "on; choose stage=dpo, or other data"
        )


def render_options(config: TrainConfig, codec: Codec, n_heads: int) -> RenderOptions:
    """How conversations become rows under these settings; of pairs of answers, both have the same prompt, as it is."""
    if config.stage.on_pairs:
        plain = replace(config.rendering, prompt_corruption=0.0, text_weight=1.0, audio_weight=1.0)
        config = replace(config, rendering=plain)
    return RenderOptions(
        ratio=IntervalRatio.of(config.text_audio_interval_ratio),
        pattern=DecodePattern.of(config.decode_pattern),
        n_heads=n_heads,
        lead_in=tuple(int(code) for code in codec.silence(config.rendering.lead_in_codes)),
        prompt_corruption=config.rendering.prompt_corruption,
        text_weight=config.rendering.text_weight,
        audio_weight=config.rendering.audio_weight,
    )


def stage_front_end(config: TrainConfig) -> SenseVoiceFrontEnd | None:
    """Makes the features that the stage's audio encoder hears: its parent's, or the encoder folder's; None for codes.

    Raises:
        UserError: the parent takes audio codes, the folder is incomplete, or the front end counts other frames than prepared
            data does.
    """
    if not config.variant.has_audio_encoder:
        return None
    parent = find_parent(config)
    if parent is not None and StageManifest.of(parent).speech_input != config.variant.speech_input:
        raise UserError(
            f"variant={config.variant.name} takes audio through an encoder, but {parent} was trained on audio codes; "
            "give another init_from, or choose a variant that takes audio codes"
        )
    own = None if parent is None else part_of(parent, ENCODER_FOLDER)
    folder = own if own is not None and (own / CMVN).is_file() else encoder_folder(config)
    front_end, usual = load_front_end(folder), SenseVoiceFrontEnd()
    if front_end.stride != usual.stride:
        raise UserError(
            f"{folder} stacks every {front_end.stride}th frame, and the places of audio in prepared data are counted for "
            f"every {usual.stride}th, as SenseVoiceSmall has it; use an encoder with lfr_n: {usual.stride}"
        )
    return front_end
