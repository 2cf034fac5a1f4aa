"""Loads a model folder of any layout: published, ours, a plain Qwen2 or Qwen3 folder, or LoRA adapters."""

from pathlib import Path

import torch

from vita_audio_pl.foreign.fields import read_json
from vita_audio_pl.models.adapters import merge_adapters
from vita_audio_pl.models.backbone import open_backbone
from vita_audio_pl.models.devices import require_device
from vita_audio_pl.models.families import family_of_folder, is_plain
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
) -> SpeechLM:
    """The model of a folder, read one tensor at a time; adapters are merged into the model that they adapt.

    Args:
        attention: kernel, see `models.attention`.
        dtype: converted to; None keeps the file's.
        device: where the weights go.

    Raises:
        UserError: a file is missing, cut short or damaged, a tensor is missing, unexpected, of another shape or not finite,
            or there is no such device.
    """
    require_device(device)
    folder = Path(folder)
    base = base_of(folder) if whole_model(folder) != folder else None  # adapters that lead in a circle are refused
    if base is not None:
        return merge_adapters(folder, load_model(base, attention=attention, dtype=dtype, device=device), base)
    model, parts = open_model(folder, attention)
    for weights, names in parts:
        load_strictly(model, weights, names, dtype, device)
    return model.materialised(device)


def open_model(
    folder: Path | str, attention: str = "per_document"
) -> tuple[SpeechLM, list[tuple[WeightFolder, dict[str, str]]]]:
    """The model of a folder on the meta device, and its weights, not read yet, with file key -> parameter name.

    The folder must hold a whole model.

    Raises:
        UserError: as `load_model`.
    """
    folder = Path(folder)
    verify_model_files(folder)
    fields = read_json(folder / CONFIG)
    family_of_folder(fields, folder / CONFIG)
    model, parts = (open_backbone if is_plain(fields) else open_released)(folder, attention)
    for weights, names in parts:
        check_fit(model, weights, names)
    return model, parts
