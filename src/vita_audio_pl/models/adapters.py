"""Model folders that hold only LoRA adapters and name the model folder they were trained on."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import Fields, read_json
from vita_audio_pl.models.lora import add_lora, merge_lora
from vita_audio_pl.models.released import released_config
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.models.weight_files import SINGLE, WeightFolder, folder_weights, is_finite, write_json
from vita_audio_pl.storage.files import save_safetensors
from vita_audio_pl.storage.model_folders import ADAPTERS, CONFIG

_FORMAT = 1
_MOST_RANK = 4096


def save_adapters(
    adapters: dict[str, Tensor],
    folder: Path,
    base: Path,
    model: SpeechLM,
    rank: int,
    alpha: float | None,
    targets: Sequence[str],
    place: Path,
    *,
    decode_pattern: Sequence[int] | None = None,
    first_code: int | None = None,
) -> None:
    """Write trained adapters as a model folder that refers to its base model.

    Args:
        adapters: trained parameters by name.
        base: model folder that they were trained on.
        model: the adapted model, for `config.json`.
        rank, alpha, targets: as passed to `add_lora`, which also adapts the heads here.
        place: final location of `folder`; the path to `base` is stored both relative to it and as given.
        decode_pattern, first_code: see `save_released`.

    Raises:
        UserError: an adapter has values that are not finite.
    """
    spoilt = [name for name, tensor in adapters.items() if not is_finite(tensor)]
    if spoilt:
        raise UserError(f"'{spoilt[0]}' cannot be written as an adapter: not all values are finite")
    save_safetensors(
        {name: tensor.contiguous() for name, tensor in adapters.items()}, folder / SINGLE, {"format": "pt"}
    )
    write_json(folder / CONFIG, released_config(model, first_code))
    pattern = {} if decode_pattern is None else {"mtp_inference_mode": list(decode_pattern)}
    write_json(folder / "generation_config.json", {"do_sample": False} | pattern)
    about = {
        "format": _FORMAT,
        "base": [os.path.relpath(base.resolve(), place.resolve()), str(base.resolve())],
        "base_weights": folder_weights(base),
        "rank": rank,
        "alpha": alpha,
        "targets": list(targets),
    }
    (folder / ADAPTERS).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def merge_adapters(folder: Path, model: SpeechLM, base: Path) -> SpeechLM:
    """Merge the adapters in `folder` into `model` in place; they must have been trained on the weights in `base`.

    Raises:
        UserError: they were trained on other weights, or the folder is damaged.
    """
    path = folder / ADAPTERS
    about = read_json(path)
    fields = Fields(about, str(path))
    fields.only("format", _FORMAT)
    if about.get("base_weights") != folder_weights(base):
        raise UserError(
            f"the adapters in {folder} were trained on other weights than those in {base}; give the model that they were "
            "trained on"
        )
    targets = about.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise UserError(f"{path} does not list the layers that are adapted; copy it again")
    alpha = fields.number("alpha", most=1e9) if fields.has("alpha") else None
    weights = WeightFolder(folder)
    add_lora(model, fields.integer("rank", most=_MOST_RANK), alpha, targets=targets, heads=True)
    wanted = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    if set(wanted) != set(weights.keys()):
        raise UserError(f"{folder} does not hold the adapters that {path} lists; copy it again")
    with torch.no_grad():
        for name, tensor in weights.tensors(wanted):
            if tensor.shape != wanted[name].shape:
                raise UserError(f"the adapter '{name}' in {folder} has shape {tuple(tensor.shape)}; copy it again")
            wanted[name].copy_(tensor)
    merge_lora(model)
    return model
