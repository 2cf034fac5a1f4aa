"""Audio to discrete codes and back: one protocol, one file or package per codec.

`MelVQ` and `MelVQConfig` are loaded when first used, so that what only reads recordings starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vita_audio_pl.codecs.audio import AudioTooLong, read_audio, write_wav
from vita_audio_pl.codecs.protocol import Codec, DecodeStream, load_codec, register_codec

if TYPE_CHECKING:
    from vita_audio_pl.codecs.mel_vq import MelVQ
    from vita_audio_pl.codecs.mel_vq_config import MelVQConfig

_LATER = {"MelVQ": "mel_vq", "MelVQConfig": "mel_vq_config"}

__all__ = [
    "AudioTooLong",
    "Codec",
    "DecodeStream",
    "MelVQ",
    "MelVQConfig",
    "load_codec",
    "read_audio",
    "register_codec",
    "write_wav",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
