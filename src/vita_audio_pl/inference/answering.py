"""One question, one answer: from recordings and text to text and sound, with a model folder and its codec."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vita_audio_pl.codecs.audio import read_audio
from vita_audio_pl.codecs.protocol import Codec, load_codec
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.loading import VANILLA, LoadedModel
from vita_audio_pl.inference.options import GenerateConfig
from vita_audio_pl.inference.prompts import Prompter, task_conversation
from vita_audio_pl.inference.session import Session
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.sensevoice_frontend import SAMPLE_RATE
from vita_audio_pl.text.conversation import Conversation
from vita_audio_pl.text.turns import AudioFrames

SPOKEN_TASKS = ("sts", "tts")


def codec_of(loaded: LoadedModel, device: str = "cpu") -> Codec | None:
    """The codec that a model folder carries, on a device; None where it carries none."""
    return None if loaded.codec_dir is None else load_codec(loaded.codec_dir, device)


def read_recordings(conversation: Conversation, loaded: LoadedModel, codec: Codec | None) -> list[NDArray[np.float32]]:
    """The conversation's recordings at the rate that the model hears them at: mono waves.

    Raises:
        UserError: a file that cannot be read, or no codec to hear it with.
    """
    if not conversation.audios:
        return []
    if loaded.front_end is None and codec is None:
        raise UserError("the model folder has no codec, so recordings cannot be read; put one into its folder 'codec'")
    rate = SAMPLE_RATE if loaded.front_end is not None or codec is None else codec.sample_rate
    return [read_audio(path, rate) for path in conversation.audios]


def listen(waves: Sequence[NDArray[np.float32]], loaded: LoadedModel, codec: Codec | None) -> list[Any]:
    """What recordings, as `read_recordings` gives them, become for the model: codes `(n,)` int32, or frames to encode."""
    if loaded.front_end is not None:
        return [AudioFrames(loaded.front_end.features(wave).numpy()) for wave in waves]
    return [] if codec is None else list(codec.encode(waves))


def clips_of(audios: Sequence[Any]) -> list[Tensor]:
    """The features among what `listen` gave, as `generate` and `Session` take them."""
    return [torch.from_numpy(audio.features) for audio in audios if isinstance(audio, AudioFrames)]


def pattern_of(mode: str | Sequence[int] | None, task: str, loaded: LoadedModel) -> DecodePattern:
    """The pattern of a mode; without one, the model's own for spoken answers and Vanilla for written ones."""
    if mode is not None:
        return DecodePattern.of(mode)
    return loaded.pattern if task in SPOKEN_TASKS else VANILLA


def open_session(config: GenerateConfig, loaded: LoadedModel, codec: Codec | None) -> Session:
    """A session that answers what the settings ask.

    Raises:
        UserError: inputs that the task does not take, files that cannot be read, settings that do not go together.
    """
    vocabulary = loaded.vocabulary
    conversation = task_conversation(config.task, text=config.text, audio=config.audio, voice=config.voice)
    audios = listen(read_recordings(conversation, loaded, codec), loaded, codec)
    prompt = Prompter(vocabulary, loaded.tokenizer).ids(conversation, audios)
    pattern = pattern_of(config.mode, config.task, loaded)
    options: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens,
        "stop_ids": (vocabulary.im_end,),
        "sampling": config.sampling.settings(),
        "constraint": SpanConstraint.of(vocabulary) if config.constrain else None,
        "verify": config.verify,
        "clips": clips_of(audios),
    }
    if config.first_chunk == "draft":
        options["first_chunk"] = (vocabulary.begin_of_audio, vocabulary.end_of_audio)
    decoder = Decoder(loaded.runtime, capacity=len(prompt) + config.max_new_tokens, graphs=config.graphs)
    return Session(decoder, prompt, pattern, **options)
