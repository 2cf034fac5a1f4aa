"""One question and its answer: recordings and text in, text and audio out, with a model folder and its codec."""

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
from vita_audio_pl.inference.loading import LoadedModel, ModelDescription
from vita_audio_pl.inference.options import GenerateConfig
from vita_audio_pl.inference.prompts import Prompter, task_conversation
from vita_audio_pl.inference.session import Session
from vita_audio_pl.models.sensevoice_frontend import SAMPLE_RATE
from vita_audio_pl.text.conversation import Conversation
from vita_audio_pl.text.turns import AudioFrames

SPOKEN_TASKS = ("sts", "tts")


def codec_of(loaded: ModelDescription, device: str = "cpu") -> Codec | None:
    """Load the codec of a model folder onto a device; None if it has none."""
    return None if loaded.codec_dir is None else load_codec(loaded.codec_dir, device)


def read_recordings(conversation: Conversation, loaded: LoadedModel, codec: Codec | None) -> list[NDArray[np.float32]]:
    """The conversation's recordings as mono waves, resampled to the rate of the codec or encoder that reads them.

    Raises:
        UserError: a file cannot be read, or the model has no codec to encode it.
    """
    through_codec = _through_codec(conversation, loaded)
    if any(through_codec) and codec is None:
        raise UserError(
            "the model has no audio codec, so recordings cannot be read; give codec_folder=DIR, or put one into its folder "
            "'codec'"
        )
    return [
        read_audio(path, codec.sample_rate if coded and codec is not None else SAMPLE_RATE)
        for path, coded in zip(conversation.audios, through_codec, strict=True)
    ]


def encode_recordings(
    conversation: Conversation, waves: Sequence[NDArray[np.float32]], loaded: LoadedModel, codec: Codec | None
) -> list[Any]:
    """Model inputs for recordings from `read_recordings`: codes `(n,)` int32, or frames for the encoder."""
    through_codec = _through_codec(conversation, loaded)
    coded = [wave for wave, coded in zip(waves, through_codec, strict=True) if coded]
    codes = iter(codec.encode(coded) if coded and codec is not None else ())
    front_end = loaded.front_end
    return [
        next(codes) if coded or front_end is None else AudioFrames(front_end.features(wave).numpy())
        for wave, coded in zip(waves, through_codec, strict=True)
    ]


def _through_codec(conversation: Conversation, loaded: LoadedModel) -> list[bool]:
    """Whether each recording is turned into codes: answers always, other audio unless the model has an encoder."""
    return [loaded.front_end is None or speaker == "assistant" for speaker in conversation.speakers]


def prompt_ids(
    conversation: Conversation, audios: Sequence[Any], loaded: LoadedModel, codec: Codec | None
) -> list[int]:
    """Token ids of the prompt; earlier answers are written as in training.

    audios: from `encode_recordings`.
    """
    rendering = loaded.rendering(codec) if codec is not None and "assistant" in conversation.speakers else None
    return Prompter(loaded.vocabulary, loaded.tokenizer, rendering).ids(conversation, audios)


def clips_of(audios: Sequence[Any]) -> list[Tensor]:
    """The encoder features in a result of `encode_recordings`, as `generate` and `Session` take them."""
    return [torch.from_numpy(audio.features) for audio in audios if isinstance(audio, AudioFrames)]


def open_session(config: GenerateConfig, loaded: LoadedModel, codec: Codec | None) -> Session:
    """Open a session that generates the requested answer.

    Raises:
        UserError: inputs that the task does not take, unreadable files, contradictory settings.
    """
    vocabulary = loaded.vocabulary
    pattern = loaded.decode_pattern(config.mode, config.task in SPOKEN_TASKS, config.verify)
    conversation = task_conversation(config.task, text=config.text, audio=config.audio, voice=config.voice)
    audios = encode_recordings(conversation, read_recordings(conversation, loaded, codec), loaded, codec)
    prompt = prompt_ids(conversation, audios, loaded, codec)
    options: dict[str, Any] = {
        "max_new_tokens": config.token_limit,
        "stop_ids": (vocabulary.im_end,),
        "sampling": config.sampling,
        "constraint": SpanConstraint.of(vocabulary) if config.constrain else None,
        **loaded.verification(config.verify, config.slack),
        "clips": clips_of(audios),
    }
    if config.first_chunk == "draft":
        options["first_chunk"] = (vocabulary.begin_of_audio, vocabulary.end_of_audio)
    decoder = Decoder(loaded.runtime, capacity=len(prompt) + config.token_limit, graphs=config.graphs)
    return Session(decoder, prompt, pattern, **options)
