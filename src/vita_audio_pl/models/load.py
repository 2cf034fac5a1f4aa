"""Loads a model folder of any layout: published, ours, a plain Qwen2 or Qwen3 folder, or LoRA adapters."""

from pathlib import Path

import torch

from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import read_json
from vita_audio_pl.models.adapters import merge_adapters
from vita_audio_pl.models.backbone import open_backbone
from vita_audio_pl.models.devices import require_device
from vita_audio_pl.models.families import family_of_folder, is_plain
from vita_audio_pl.models.quantised import check_scheme, linear_layers, quantise, quantise_layer, refuse_quantised
from vita_audio_pl.models.released import open_released
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.models.weight_files import WeightFolder, check_fit, load_strictly, verify_model_files
from vita_audio_pl.storage.model_folders import CONFIG, base_of, whole_model


def load_model(
    folder: Path | str,
    *,
    attention: str = "per_document",
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
) -> SpeechLM:
    """Load the model in a folder, one tensor at a time; adapters are merged into their base model.

    Args:
        attention: attention kernel, see `models.attention`.
        dtype: dtype of the weights; None keeps the file's.
        device: device of the weights.
        quantize: a scheme of `models.quantised`: each linear layer is rounded as soon as it is read.

    Raises:
        UserError: a file is missing, truncated or damaged; a tensor is missing, unexpected, misshapen or not finite;
            there is no such device; or the model cannot be quantised so.
    """
    require_device(device)
    folder = Path(folder)
    base = base_of(folder) if whole_model(folder) != folder else None  # a circle of adapters is refused
    if base is not None:
        if quantize is not None:  # before the weights are read
            whole, _ = open_model(whole_model(folder))
            refuse_quantised(whole, base, "adapted")
            check_scheme(whole, quantize)
        whole = load_model(base, attention=attention, dtype=dtype, device=device)
        refuse_quantised(whole, base, "adapted")
        model = merge_adapters(folder, whole, base)
        if quantize is not None:
            quantise(model, quantize)
        return model
    model, parts = open_model(folder, attention)
    layers: set[str] = set()
    if quantize is not None:
        check_scheme(model, quantize)
        layers = set(linear_layers(model))

    def done(name: str) -> None:
        owner, _, attribute = name.rpartition(".")
        if owner in layers and attribute == "weight":
            quantise_layer(model, owner, str(quantize))

    for weights, names in parts:
        load_strictly(model, weights, names, dtype, device, done)
    model.config.quantize = quantize or model.config.quantize
    return model.materialised(device)


def open_model(
    folder: Path | str, attention: str = "per_document"
) -> tuple[SpeechLM, list[tuple[WeightFolder, dict[str, str]]]]:
    """The model of a folder on the meta device, its unread weight files, and a map from file key to parameter name.

    The folder must hold a whole model, not adapters.

    Raises:
        UserError: see `load_model`.
    """
    folder = Path(folder)
    verify_model_files(folder)
    fields = read_json(folder / CONFIG)
    family_of_folder(fields, folder / CONFIG)
    if fields.get("quantization_config"):
        raise UserError(
            f"{folder / CONFIG} says that another tool has quantised these weights; give the model as it was before, and "
            "quantize=int4 or another scheme to hold it in few bits"
        )
    model, parts = (open_backbone if is_plain(fields) else open_released)(folder, attention)
    for weights, names in parts:
        check_fit(model, weights, names)
    return model, parts
