"""A checkpoint as a model: the folder that its stage would hand over if it ended there, made beside the checkpoints."""

import json
import time
from pathlib import Path
from typing import Any, cast

import xxhash
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vita_audio_pl.codecs.protocol import load_codec
from vita_audio_pl.config.entry import to_dataclass
from vita_audio_pl.config.renamed import rename_settings
from vita_audio_pl.data.staging import beside, tokenizer_folder
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.model_folders import part_of, read_manifest
from vita_audio_pl.text import TextTokenizer
from vita_audio_pl.training.checkpoints.folders import STATE, step_of
from vita_audio_pl.training.checkpoints.parts import weights_of_checkpoint
from vita_audio_pl.training.run_folder.layout import CONFIG, IDENTITY, StageFolder
from vita_audio_pl.training.run_folder.manifest import StageManifest, is_model_folder
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.stage.data import stage_front_end
from vita_audio_pl.training.stage.hand_over import Ended, ModelParts, TrainedModel, hand_over
from vita_audio_pl.training.stage.train import find_parent

_PATIENCE = 3600.0  # seconds that ranks wait for the first to make the model


def model_of_checkpoint(checkpoint: Path, first: bool = True) -> Path:
    """The model folder of a checkpoint, `<stage>/models/step-<n>`; made where it is not there, or is of other weights.

    Memory: as `TrainedModel.of`.

    Args:
        first: of a launch whose processes all ask, the first makes the model, and the others wait for it.

    Raises:
        UserError: the checkpoint is damaged, its stage's settings or the data's tokenizer and codec are not there, or the
            parent is not the one that the stage started from.
    """
    folder = StageFolder(checkpoint.resolve().parents[1])
    target = folder.models / checkpoint.stem
    seal = _seal(checkpoint)
    deadline = time.monotonic() + _PATIENCE
    while not (is_model_folder(target) and read_manifest(target).get("checkpoint") == seal):
        if first:
            _make(checkpoint, folder, target, seal)
            break
        if time.monotonic() > deadline:
            raise UserError(f"{target} was not made by the first process within {_PATIENCE:.0f} s")
        time.sleep(0.2)
    return target


def _make(checkpoint: Path, folder: StageFolder, target: Path, seal: str) -> None:
    config, identity = _config(folder), _read(folder.root / IDENTITY)
    parent_folder = find_parent(config)
    parent = None if parent_folder is None else StageManifest.of(parent_folder)
    if parent is not None and parent.weights != identity.get("parent_weights"):
        raise UserError(
            f"{checkpoint} was trained from other weights than {parent_folder} has now; a checkpoint holds what trained, and "
            "the rest comes from there: restore it"
        )
    weights = weights_of_checkpoint(checkpoint)
    parts = _parts(config, parent_folder, identity)
    print(f"{checkpoint.name} of {folder.root} is converted to a model folder: {target}", flush=True)
    trained = TrainedModel.of(config, parts.vocabulary, parent_folder, weights)
    hand_over(config, parts, trained, Ended(step_of(checkpoint), 0, len(weights), seal), parent_folder, parent, target)


def _config(folder: StageFolder) -> TrainConfig:
    """The settings that a stage runs with, its run folder being where it is now."""
    path = folder.root / CONFIG
    try:
        held = rename_settings(cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path))), "train")
        held.pop("format", None)
        composed = OmegaConf.merge(OmegaConf.structured(TrainConfig), held)
        config: TrainConfig = to_dataclass(composed)  # type: ignore[arg-type]  # a merge of mappings is one
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise UserError(
            f"{path} cannot be read ({error}); a checkpoint is converted to a model with its stage's settings"
        ) from error
    config.paths.runs = str(folder.root.parents[len(Path(config.run_name).parts)])
    return config


def _parts(config: TrainConfig, parent: Path | None, identity: dict[str, Any]) -> ModelParts:
    """Tokenizer and codec of the data, or the parent's, which are the same.

    Raises:
        UserError: they are in neither place, or are others now.
    """
    tokenizers = [tokenizer_folder(config.data), *([part_of(parent, "tokenizer")] if parent else [])]
    codecs = [beside(config.data, "codec"), *([part_of(parent, "codec")] if parent else [])]
    front_end = stage_front_end(config)
    for text_folder in filter(None, tokenizers):
        for codec_folder in filter(None, codecs):
            if not (Path(text_folder).is_dir() and Path(codec_folder).is_dir()):
                continue
            tokenizer, codec = TextTokenizer.load(text_folder), load_codec(codec_folder)
            vocabulary = tokenizer.vocabulary(codec.codebook_size, continuous_input=front_end is not None)
            if (vocabulary.fingerprint, codec.fingerprint) == (identity.get("vocabulary"), identity.get("codec")):
                return ModelParts(
                    vocabulary=vocabulary,
                    tokenizer_folder=Path(text_folder),
                    tokenizer=tokenizer.fingerprint,
                    codec_folder=Path(codec_folder),
                    codec=codec.name,
                    codec_fingerprint=codec.fingerprint,
                    front_end=front_end,
                )
    places = ", ".join(dict.fromkeys(str(place) for place in [*tokenizers, *codecs] if place))
    raise UserError(
        f"tokenizer and codec that the stage trained with are not (or no longer) in {places}; put them back"
    )


def _seal(checkpoint: Path) -> str:
    """Hash of the small files of a checkpoint, which hold the checksums of the others."""
    digest = xxhash.xxh3_128()
    try:
        for path in [checkpoint / STATE, *sorted(checkpoint.glob("part-*.json"))]:
            digest.update(path.read_bytes())
    except OSError as error:
        raise UserError(f"{checkpoint} cannot be read: {error}") from error
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
