"""Base language models from Hugging Face folders (Qwen2, Qwen2.5)."""

from pathlib import Path

import torch

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.released import backbone_config, released_keys
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.models.weight_files import WeightFolder, load_strictly, read_json


def load_backbone(
    folder: Path | str,
    *,
    attention: str = "per_document",
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> SpeechLM:
    """A model without heads from a Qwen2 folder: single or sharded safetensors, tied (no `lm_head.weight`) or not.

    Args:
        attention: kernel, see `models.attention`.
        dtype: converted to; None keeps the file's.
        device: where the weights go.

    Raises:
        UserError: not a Qwen2 folder, or its weights do not fit its `config.json`.
    """
    path = Path(folder) / "config.json"
    fields = read_json(path)
    if fields.get("model_type") != "qwen2":
        raise UserError(f"{path} says model_type '{fields.get('model_type')}'; the backbone has to be a 'qwen2' model")
    config = backbone_config(fields, fields.get("num_hidden_layers", 0), path)
    model = SpeechLM.on_meta(SpeechLMConfig(config, n_heads=0, attention=attention))
    load_strictly(model, WeightFolder(folder), released_keys(model), dtype, device)
    return model.materialised(device)
