"""Models with random weights, of the size to be measured."""

import torch

from vita_audio_pl.benchmarking.sizes import ModelSize
from vita_audio_pl.errors import UserError
from vita_audio_pl.models.families import FAMILIES
from vita_audio_pl.models.released import config_from_fields
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig


def random_model(
    size: ModelSize,
    positions: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    attention: str = "per_document",
    seed: int = 0,
    group: str = "benchmark_size",
) -> SpeechLM:
    """A model of that size for rows of `positions` tokens, made on its device (by default the CPU).

    Raises:
        UserError: its parts do not fit; group: of settings, which the sentence names.
    """
    if size.attention_heads % size.key_value_heads or (
        size.head_dim is None and size.hidden_size % size.attention_heads
    ):
        raise UserError(
            f"{group}.attention_heads={size.attention_heads} must divide {group}.hidden_size={size.hidden_size} (or "
            f"{group}.head_dim says their size) and be divisible by {group}.key_value_heads={size.key_value_heads}"
        )
    fields = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_attention_heads": size.attention_heads,
        "num_key_value_heads": size.key_value_heads,
        "max_position_embeddings": positions,
        "tie_word_embeddings": size.tied,
        "head_dim": size.head_dim or size.hidden_size // size.attention_heads,
    }
    backbone = config_from_fields(fields, FAMILIES[size.family], size.layers, group)
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device or torch.device("cpu"):
            return SpeechLM(SpeechLMConfig(backbone, size.heads, attention))
    finally:
        torch.set_default_dtype(before)
