"""The manifest of a finished stage, and the check that the next stage starts from the right model."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.loading import read_model_facts
from vita_audio_pl.models.weight_files import INDEX, SINGLE, folder_weights, is_weights, verify_model_files
from vita_audio_pl.storage.checksums import FileSum, read_checksums, size_damage, sum_of_bytes

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class StageManifest:
    """The identity of a model folder, kept in `manifest.json`.

    Attributes:
        stage: stage that made the model.
        variant: variant that the run belongs to.
        run_name: the run.
        parent: model folder that the stage started from; None for a plain backbone.
        parent_stage: the parent's stage.
        parent_weights: hash of the parent's weights.
        weights: hash of this folder's weight files.
        vocabulary: fingerprint of the whole vocabulary.
        tokenizer: fingerprint of the text tokenizer.
        codec: name of the audio codec; `codec_fingerprint` distinguishes codecs of the same name.
        text_audio_interval_ratio: interval ratio of the training data.
        decode_pattern: pattern of backbone and head tokens in decoding.
        n_heads: MCTP heads.
        steps: optimiser steps of the stage.
        frozen: tensors that were frozen, checked to be bit-identical; `trained`: tensors that trained and changed.
        speech_input: how the user's speech enters: `codes`, or `encoder` in the Plus variants.
        pretrained: whether the weights descend from pretrained ones.
        checkpoint: seal of the checkpoint that the weights come from; None if the stage has ended.
        config: all settings of the run.
        merged: the merged models (`merging.merge_models`); None for weights of a stage.
    """

    stage: str
    variant: str
    run_name: str
    parent: str | None
    parent_stage: str | None
    parent_weights: str | None
    weights: str
    vocabulary: str
    tokenizer: str
    codec: str
    codec_fingerprint: str
    text_audio_interval_ratio: list[int]
    decode_pattern: list[int]
    n_heads: int
    steps: int
    frozen: int
    trained: int
    speech_input: str = "codes"
    pretrained: bool = False
    checkpoint: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    merged: dict[str, Any] | None = None
    format: int = FORMAT

    def write(self, folder: Path) -> FileSum:
        """Write the manifest; returns its checksums."""
        data = (json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n").encode()
        (folder / MANIFEST).write_bytes(data)
        return sum_of_bytes(data)

    @classmethod
    def read(cls, folder: Path) -> "StageManifest":
        """Load the manifest of a model folder.

        Raises:
            UserError: it is missing, unreadable, or does not match its checksum.
        """
        path = folder / MANIFEST
        verify_model_files(folder, [MANIFEST])
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**values)
        except FileNotFoundError:
            raise UserError(f"{folder} is not the model folder of a stage: it has no {MANIFEST}") from None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} cannot be read as a stage's manifest: {error}") from error

    @classmethod
    def of(cls, folder: Path) -> "StageManifest":
        """The manifest of a model folder; for published weights, what their files say.

        Fields that the files do not determine (stage, codec, ratio) are empty and are not compared with anything.

        Raises:
            UserError: it is not a model folder, or its parts do not match.
        """
        if (folder / MANIFEST).is_file():
            return cls.read(folder)
        facts = read_model_facts(folder)
        return cls(
            stage="",
            variant="",
            run_name=folder.name,
            parent=None,
            parent_stage=None,
            parent_weights=None,
            weights=folder_weights(folder),
            vocabulary=facts.vocabulary.fingerprint,
            tokenizer=facts.tokenizer.fingerprint,
            codec="",
            codec_fingerprint="",
            text_audio_interval_ratio=[],
            decode_pattern=list(facts.pattern.runs),
            n_heads=facts.n_heads,
            steps=0,
            frozen=0,
            trained=0,
            speech_input="encoder" if facts.vocabulary.continuous_input else "codes",
            pretrained=True,
        )


def is_model_folder(folder: Path) -> bool:
    """Whether a stage was finished there and its model is complete."""
    return (folder / MANIFEST).is_file() and model_damage(folder) is None


def model_damage(folder: Path) -> str | None:
    """What is missing in a model folder, judging by names and sizes; None if it is complete.

    The files are those in `checksums.json`, or in older folders those in the index of the weights. No weights are read;
    checksums are compared when they are loaded, and other files may have been edited.
    """
    try:
        StageManifest.read(folder)
        sums = read_checksums(folder) or {}
        for name, written in sums.items():
            damage = size_damage(folder / name, written.bytes)
            if damage is not None and (is_weights(name) or not damage.path.exists()):
                return str(damage)
        if not sums:
            index = folder / INDEX
            listed = json.loads(index.read_bytes())["weight_map"].values() if index.is_file() else [SINGLE]
            for name in sorted(set(listed)):
                with safe_open(folder / name, "np"):  # compares the file's size with its header
                    pass
    except UserError as error:
        return str(error)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"the weights in {folder} are missing, cut or cannot be read ({error})"
    return None


def check_parent(
    parent: StageManifest,
    folder: Path,
    *,
    stage: str,
    variant: str,
    allowed: Sequence[str],
    n_heads: int | None,
    facts: Mapping[str, Any],
) -> None:
    """Refuse a parent that the stage cannot start from.

    Args:
        parent: the parent's manifest, read from `folder`.
        stage: the stage about to start, of `variant`.
        allowed: stages that it may start from.
        n_heads: heads of the stage's model; None keeps the parent's.
        facts: values that must be equal, by manifest field (`vocabulary`, `codec_fingerprint`, ...).

    Raises:
        UserError: names the first mismatch.
    """
    if parent.stage and parent.stage not in allowed:
        choices = " or ".join(f"'{name}'" for name in allowed) or "a plain backbone"
        raise UserError(
            f"stage '{stage}' of {variant} starts from {choices}, but {folder} was made by stage '{parent.stage}'; give "
            f"another init_from, or allow it with 'variant.parents.{stage}=[{parent.stage}]'"
        )
    for name, wanted in facts.items():
        found = getattr(parent, name)
        if found and found != wanted:  # fields that published weights do not determine are empty
            raise UserError(
                f"{folder} cannot be the parent of stage '{stage}': its {_MEANING.get(name, name)} is {found}, and this "
                f"run's is {wanted}; {_REMEDY.get(name, 'train the parent again with these settings')}"
            )
    if n_heads is not None and parent.n_heads > n_heads:
        raise UserError(
            f"stage '{stage}' wants {n_heads} heads, but its parent {folder} has {parent.n_heads}; heads can only be added"
        )


_MEANING = {
    "speech_input": "speech input (variant.speech_input)",
    "vocabulary": "vocabulary (fingerprint)",
    "tokenizer": "text tokenizer (fingerprint)",
    "codec_fingerprint": "audio codec (fingerprint)",
    "text_audio_interval_ratio": "text_audio_interval_ratio",
}
_REMEDY = {
    "speech_input": "choose a variant with the same speech input",
    "vocabulary": "use the data that it was trained on, or train the parent again",
    "tokenizer": "use the data that it was trained on, or train the parent again",
    "codec_fingerprint": "use the data that it was trained on, or train the parent again",
    "text_audio_interval_ratio": "set text_audio_interval_ratio to the parent's, or train the parent again under another "
    "run_name",
}
