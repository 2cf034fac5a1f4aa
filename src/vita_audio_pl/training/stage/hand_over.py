"""A model folder from the weights that a stage has trained, and what goes with them."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vita_audio_pl.config.component import plain
from vita_audio_pl.models.adapters import save_adapters
from vita_audio_pl.models.released import ENCODER_FOLDER, save_released
from vita_audio_pl.models.sensevoice_frontend import CMVN, SenseVoiceFrontEnd, write_cmvn
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.models.tensor_file import LateTensor
from vita_audio_pl.models.weight_files import weights_hash
from vita_audio_pl.storage.checksums import sum_of_folder, write_checksums
from vita_audio_pl.storage.owned import atomic_folder
from vita_audio_pl.text.vocabulary import Vocabulary
from vita_audio_pl.training.run_folder.manifest import MANIFEST, StageManifest
from vita_audio_pl.training.run_folder.origin import is_pretrained
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.stage.sharded_start import ShardedStart
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


@dataclass(frozen=True)
class TrainedModel:
    """A model to write.

    Attributes:
        model: with its weights; or on the meta device.
        weights: parameters by name, for a model on the meta device.
    """

    model: SpeechLM
    weights: dict[str, LateTensor] | None = None

    @classmethod
    def of(
        cls, config: TrainConfig, vocabulary: Vocabulary, parent_folder: Path | None, trained: Mapping[str, LateTensor]
    ) -> "TrainedModel":
        """What a stage starts from, with what it has trained in its place.

        Weights that a folder holds are read one by one, as they are written. The whole model is built where drawn
        weights are frozen, and where the start is a folder of adapters.

        Args:
            parent_folder: model folder that the stage started from; None where it started from a plain backbone.
            trained: whole values of the parameters that trained, by name.
        """
        start = ShardedStart.of(config, vocabulary, parent_folder)
        frozen = {} if start is None else start.late_parameters()
        if start is None or any(start.is_drawn(name) for name in frozen.keys() - trained.keys()):
            model = starting_model(config, vocabulary, parent_folder)
            parameters = dict(model.named_parameters())
            with torch.no_grad():
                for name, value in trained.items():
                    parameters[name].copy_(value.read())
            return cls(model)
        weights = {
            name: LateTensor(value.dtype, value.shape, partial(_in_type, trained.get(name, value), value.dtype))
            for name, value in frozen.items()
        }
        return cls(start.model, weights)


def _in_type(value: LateTensor, dtype: torch.dtype) -> Tensor:
    return value.read().to(dtype)


def hand_over(
    config: TrainConfig,
    parts: ModelParts,
    trained: TrainedModel,
    ended: Ended,
    parent_folder: Path | None,
    parent: StageManifest | None,
    target: Path,
) -> None:
    """Write the model folder aside and rename it: weights, tokenizer, codec, the encoder's front end, manifest.

    Args:
        parent_folder: model folder that the stage started from; None where it started from a plain backbone.
        parent: its manifest.
        target: the model folder; one that is there is replaced.
    """
    model = trained.model
    with atomic_folder(target, "trained model", replace=True) as aside:
        how: dict[str, Any] = {"decode_pattern": config.decode_pattern, "first_code": parts.vocabulary.first_code}
        lora = config.model.lora
        if lora.only and parent_folder is not None:  # `check_adapters` has refused any other
            every = trained.weights or {name: LateTensor.of(value) for name, value in model.named_parameters()}
            adapters = {name: value.read().cpu() for name, value in every.items() if ".lora_" in name}
            save_adapters(adapters, aside, parent_folder, model, lora.rank, lora.alpha, lora.targets, target, **how)
        else:
            save_released(model, aside, weights=trained.weights, **how)
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
