"""Train, run and measure speech language models that write text and audio tokens in one stream.

The names below are loaded when first used, so that importing the package costs nothing:
`from vita_audio_pl import IntervalRatio, load_speech_model, train_config`. See the page "From Python".
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "DecodePattern": "vita_audio_pl.interleave",
    "IntervalRatio": "vita_audio_pl.interleave",
    "PackedBatch": "vita_audio_pl.packed",
    "Session": "vita_audio_pl.inference.session",
    "SpeechDataModule": "vita_audio_pl.data.datamodule",
    "SpeechLM": "vita_audio_pl.models.speech_lm",
    "SpeechLMModule": "vita_audio_pl.training.step.module",
    "TextTokenizer": "vita_audio_pl.text",
    "UserError": "vita_audio_pl.errors",
    "load_codec": "vita_audio_pl.codecs",
    "load_speech_model": "vita_audio_pl.inference.loading",
    "named_model": "vita_audio_pl.model_names",
    "open_stage": "vita_audio_pl.notebook",
    "prepare_data": "vita_audio_pl.notebook",
    "train_config": "vita_audio_pl.notebook",
    "train_stage": "vita_audio_pl.notebook",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vita_audio_pl' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
