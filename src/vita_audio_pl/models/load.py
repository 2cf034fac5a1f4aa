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
    """Load the model in a folder, one tensor at a time; adapters are merged into their base model.

    Args:
        attention: attention kernel, see `models.attention`.
        dtype: dtype of the weights; None keeps the file's.
        device: device of the weights.

    Raises:
        UserError: a file is missing, truncated or damaged; a tensor is missing, unexpected, misshapen or not finite;
            or there is no such device.
    """
    require_device(device)
    folder = Path(folder)
    base = base_of(folder) if whole_model(folder) != folder else None  # a circle of adapters is refused
    if base is not None:
        return merge_adapters(folder, load_model(base, attention=attention, dtype=dtype, device=device), base)
    model, parts = open_model(folder, attention)
    for weights, names in parts:
        load_strictly(model, weights, names, dtype, device)
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
    model, parts = (open_backbone if is_plain(fields) else open_released)(folder, attention)
    for weights, names in parts:
        check_fit(model, weights, names)
    return model, parts
