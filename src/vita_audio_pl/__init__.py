"""Train, run and measure speech language models that write text and audio tokens in one stream.

The names below are loaded when first used, so that importing the package costs nothing:
`from vita_audio_pl import DecodePattern, IntervalRatio, Session, SpeechLM, load_speech_model`.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "DecodePattern": "vita_audio_pl.interleave",
    "IntervalRatio": "vita_audio_pl.interleave",
    "PackedBatch": "vita_audio_pl.packed",
    "Session": "vita_audio_pl.inference.session",
    "SpeechLM": "vita_audio_pl.models.speech_lm",
    "UserError": "vita_audio_pl.errors",
    "load_speech_model": "vita_audio_pl.inference.loading",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vita_audio_pl' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
