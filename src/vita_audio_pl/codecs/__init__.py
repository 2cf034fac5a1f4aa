"""Audio to discrete codes and back: one protocol, one file or package per codec."""

from vita_audio_pl.codecs.audio import AudioTooLong, read_audio, write_wav
from vita_audio_pl.codecs.mel_vq import MelVQ
from vita_audio_pl.codecs.mel_vq_config import MelVQConfig
from vita_audio_pl.codecs.protocol import Codec, DecodeStream, load_codec, register_codec

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
