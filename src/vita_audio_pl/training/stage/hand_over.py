"""A model folder from the weights that a stage has trained, and what goes with them."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vita_audio_pl.config.component import plain
from vita_audio_pl.models.adapters import save_adapters
from vita_audio_pl.models.released import ENCODER_FOLDER, save_released
from vita_audio_pl.models.sensevoice_frontend import CMVN, SenseVoiceFrontEnd, write_cmvn
from vita_audio_pl.models.weight_files import weights_hash
from vita_audio_pl.storage.checksums import sum_of_folder, write_checksums
from vita_audio_pl.storage.owned import atomic_folder
from vita_audio_pl.text.vocabulary import Vocabulary
from vita_audio_pl.training.run_folder.manifest import MANIFEST, StageManifest
from vita_audio_pl.training.run_folder.origin import is_pretrained
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.stage.starting_model import starting_model


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """What a model folder holds beside the weights.

    Attributes:
        vocabulary: of the rendered ids.
        tokenizer_folder: text tokenizer, copied into the model folder; `tokenizer` is its fingerprint.
        codec_folder: audio codec, copied likewise; `codec` is its name.
        front_end: of the audio encoder, in the Plus variants.
    """

    vocabulary: Vocabulary
    tokenizer_folder: Path
    tokenizer: str
    codec_folder: Path
    codec: str
    codec_fingerprint: str
    front_end: SenseVoiceFrontEnd | None = None


@dataclass(frozen=True)
class Ended:
    """Where a stage ended: optimiser steps done, frozen tensors, checked to be bit-identical, tensors that trained; `checkpoint`: seal of the
    checkpoint that the weights are of, where the stage has not ended.
    """

    steps: int
    frozen: int
    trained: int
    checkpoint: str | None = None


def hand_over(
    config: TrainConfig,
    parts: ModelParts,
    weights: dict[str, Tensor],
    ended: Ended,
    parent_folder: Path | None,
    parent: StageManifest | None,
    target: Path,
) -> None:
    """Write the model folder aside and rename it: weights, tokenizer, codec, the encoder's front end, manifest.

    Args:
        weights: whole values of the parameters that trained, by name; the others are the starting model's.
        parent_folder: model folder that the stage started from; None where it started from a plain backbone.
        parent: its manifest.
        target: the model folder; one that is there is replaced.
    """
    model = starting_model(config, parts.vocabulary, parent_folder)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    with atomic_folder(target, "trained model", replace=True) as aside:
        how: dict[str, Any] = {"decode_pattern": config.decode_pattern, "first_code": parts.vocabulary.first_code}
        lora = config.model.lora
        if lora.only and parent_folder is not None:  # `check_adapters` has refused any other
            adapters = {name: value for name, value in parameters.items() if ".lora_" in name}
            save_adapters(adapters, aside, parent_folder, model, lora.rank, lora.alpha, lora.targets, target, **how)
        else:
            save_released(model, aside, **how)
            shutil.copytree(parts.tokenizer_folder, aside / "tokenizer")
            shutil.copytree(parts.codec_folder, aside / "codec")
        if parts.front_end is not None and not lora.only:
            write_cmvn(aside / ENCODER_FOLDER / CMVN, parts.front_end.shift, parts.front_end.scale)
        written = sum_of_folder(aside)
        manifest = StageManifest(
            stage=config.stage.name,
            variant=config.variant.name,
            run_name=config.run_name,
            parent=None if parent_folder is None else os.path.relpath(parent_folder.resolve(), target.parent.resolve()),
            parent_stage=None if parent is None else parent.stage or None,
            parent_weights=None if parent is None else parent.weights,
            weights=weights_hash(written),
            vocabulary=parts.vocabulary.fingerprint,
            tokenizer=parts.tokenizer,
            codec=parts.codec,
            codec_fingerprint=parts.codec_fingerprint,
            text_audio_interval_ratio=list(config.text_audio_interval_ratio),
            decode_pattern=list(config.decode_pattern),
            n_heads=model.n_heads,
            steps=ended.steps,
            frozen=ended.frozen,
            trained=ended.trained,
            speech_input=config.variant.speech_input,
            pretrained=config.model.pretrained is not None if parent_folder is None else is_pretrained(parent_folder),
            checkpoint=ended.checkpoint,
            config=plain(config),
        )
        write_checksums(aside, {**written, MANIFEST: manifest.write(aside)})
