"""Model merging: the weighted mean of models, or a base plus weighted task vectors.

    mean:          sum_i w_i m_i / sum_i w_i                     (Model Soups, arXiv 2203.05482)
    task vectors:  base + sum_i w_i (m_i - base)                 (Task Arithmetic, arXiv 2212.04089)

Sums are in float32; the result has the dtypes of the first model. Tensors are read and written one file at a time.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.loading import read_model_facts
from vita_audio_pl.models.families import family_of
from vita_audio_pl.models.load import open_model
from vita_audio_pl.models.quantised import refuse_quantised
from vita_audio_pl.models.released import backbone_dict
from vita_audio_pl.models.weight_files import WeightFolder, folder_weights, is_finite, is_weights, weights_hash
from vita_audio_pl.storage.checksums import CHECKSUMS, sum_of_folder, write_checksums
from vita_audio_pl.storage.files import save_safetensors
from vita_audio_pl.storage.model_folders import MANIFEST, part_of, read_manifest, whole_model
from vita_audio_pl.storage.owned import atomic_folder
from vita_audio_pl.training.run_folder.manifest import StageManifest
from vita_audio_pl.training.run_folder.origin import is_plain_backbone

_FREE = ("attention_dropout", "eos_token_id", "initializer_range", "max_position_embeddings")
"""Configuration fields that may differ between models that compute the same function; the ends are told to transformers alone."""


_FACTS_OF_MANIFEST = {"codec_fingerprint": "codec", "text_audio_interval_ratio": "text-audio interval ratio"}


@dataclass(frozen=True)
class _Source:
    """A model to merge: the location of each parameter, and the properties that must be equal in all models."""

    folder: Path
    places: dict[str, tuple[WeightFolder, str]]
    facts: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, folder: Path) -> "_Source":
        if whole_model(folder) != folder:
            raise UserError(
                f"{folder} holds adapters alone; make a whole model of it first: python -m vita_audio_pl.export"
            )
        if (folder / "heads").is_dir():
            raise UserError(
                f"{folder} is in the layout for vLLM; merge the model that it was exported from, and export the result"
            )
        model, parts = open_model(folder)
        refuse_quantised(model, folder, "merged")
        words = read_model_facts(folder)
        facts = {
            "family": family_of(model.config.backbone).model_type,
            "number of heads": model.n_heads,
            "form of heads": model.config.heads,
            "text tokenizer": words.tokenizer.fingerprint,
            "vocabulary": words.vocabulary.fingerprint,
            **{name: value for name, value in backbone_dict(model.config.backbone).items() if name not in _FREE},
        }
        manifest = read_manifest(folder)  # models from elsewhere have none
        facts |= {what: manifest[name] for name, what in _FACTS_OF_MANIFEST.items() if manifest.get(name)}
        places = {name: (weights, key) for weights, names in parts for key, name in names.items()}
        return cls(folder, places, facts, {name: tuple(p.shape) for name, p in model.named_parameters()})

    def files(self) -> dict[str, dict[str, str]]:
        """Weight file -> its keys -> parameters."""
        found: dict[str, dict[str, str]] = {}
        for name, (weights, key) in self.places.items():
            found.setdefault(weights.file_of(key), {})[key] = name
        return found

    def check_merges_with(self, other: "_Source") -> None:
        for one, two in ((self.facts, other.facts), (self.shapes, other.shapes)):
            for name in {**one, **two}:
                unknown = name in _FACTS_OF_MANIFEST.values() and not (name in one and name in two)
                if one.get(name) != two.get(name) and not unknown:
                    raise UserError(
                        f"{self.folder} and {other.folder} cannot be merged: {name} is {one.get(name)} in the first and "
                        f"{two.get(name)} in the second"
                    )

    def tensor(self, name: str) -> Tensor:
        weights, key = self.places[name]
        [(_, tensor)] = weights.tensors([key])
        return tensor


def merge_models(
    models: Sequence[Path],
    target: Path,
    weights: Sequence[float] | None = None,
    base: Path | None = None,
) -> None:
    """Write the merged model to the new folder `target`, with layout, tokenizer and codec of the first model.

    Needs host memory for one file of the first model and one tensor of each. The manifest is the first model's, with
    a record of the merge under `merged`.

    Args:
        models: model folders.
        weights: one per model, in order; None = equal weights. A mean divides them by their sum.
        base: model that all were trained from, for task vectors; None for a mean.

    Raises:
        UserError: the models do not fit together, the weights do not fit the models, or `target` is there already.
    """
    if os.path.lexists(target):
        raise UserError(f"{target} is there already; give a folder that is not, or move it away")
    shares = _shares(len(models), weights, base is not None)
    sources = [_Source.of(folder) for folder in models]
    start = None if base is None else _Source.of(base)
    for other in (*sources[1:], *(() if start is None else (start,))):
        sources[0].check_merges_with(other)

    def merged(name: str) -> Tensor:
        first = sources[0].tensor(name)
        origin = None if start is None else start.tensor(name).float()
        total = first.float().mul(shares[0]) if origin is None else origin + shares[0] * (first.float() - origin)
        for share, source in zip(shares[1:], sources[1:], strict=True):
            tensor = source.tensor(name).float()
            total += share * (tensor if origin is None else tensor - origin)
        return total.to(first.dtype)

    with atomic_folder(target, "merged model", marked=False) as aside:
        _copy_small_files(models[0], aside)
        for file, names in sources[0].files().items():
            tensors = {key: merged(name) for key, name in names.items()}
            spoilt = next((key for key, tensor in tensors.items() if not is_finite(tensor)), None)
            if spoilt is not None:
                raise UserError(f"the merged '{spoilt}' is too large for its type; give smaller weights")
            save_safetensors(tensors, aside / file, metadata={"format": "pt"})
        _write_manifest(aside, models, shares, base)
        write_checksums(aside, sum_of_folder(aside))


def _shares(number: int, weights: Sequence[float] | None, task_vectors: bool) -> list[float]:
    if task_vectors:
        if weights is None:
            raise UserError("with base=, give weights=[...]: how much of what each model learnt is added, as [0.5,0.5]")
    elif number < 2:
        raise UserError("a mean needs two models or more; give models=[A,B], or base= for a task vector")
    given = [1.0] * number if weights is None else list(weights)
    if len(given) != number:
        raise UserError(f"there are {number} models and {len(given)} weights; give one weight for each model")
    total = 1.0 if task_vectors else sum(given)
    if abs(total) < 1e-6:
        raise UserError(f"weights={given} add up to 0, so they have no mean; give others")
    return [weight / total for weight in given]


def _copy_small_files(model: Path, aside: Path) -> None:
    """Files to copy from a model folder: all except weights, checksums, manifest, and the card of the other model."""
    for path in sorted(model.iterdir()):
        if path.is_file() and not is_weights(path.name) and path.name not in (CHECKSUMS, MANIFEST, "README.md"):
            shutil.copy(path, aside / path.name)
    for name in ("tokenizer", "codec", "speech_input"):
        folder = part_of(model, name)
        if folder is not None:
            shutil.copytree(folder, aside / name)


def _write_manifest(aside: Path, models: Sequence[Path], shares: Sequence[float], base: Path | None) -> None:
    if is_plain_backbone(models[0]):
        return  # with a manifest it would count as a stage's model
    parents = [
        {"model": str(folder), "weights": folder_weights(folder), "share": share}
        for folder, share in zip(models, shares, strict=True)
    ]
    start = None if base is None else {"model": str(base), "weights": folder_weights(base)}
    merged = {"method": "mean" if base is None else "task_vectors", "models": parents, "base": start}
    manifest = StageManifest.of(models[0])
    replace(manifest, weights=weights_hash(sum_of_folder(aside)), checkpoint=None, merged=merged).write(aside)
