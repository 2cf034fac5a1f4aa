"""GLM-4-Voice's codec in our own code: tokenizer (Whisper encoder, codebook), flow-matching decoder, HiFT vocoder."""

from vita_audio_pl.codecs.glm4voice.codec import GLM4VoiceCodec
from vita_audio_pl.codecs.glm4voice.decoder import SpeechDecoder
from vita_audio_pl.codecs.glm4voice.encode_stream import EncodeStream
from vita_audio_pl.codecs.glm4voice.stream_options import GROWING_STEPS, StreamOptions
from vita_audio_pl.codecs.glm4voice.tokenizer import SpeechTokenizer

__all__ = ["GROWING_STEPS", "EncodeStream", "GLM4VoiceCodec", "SpeechDecoder", "SpeechTokenizer", "StreamOptions"]
