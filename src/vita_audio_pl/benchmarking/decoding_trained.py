"""The decoding benchmark with a trained model: real prompts, real answers, real drafts, the model's own codec."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vita_audio_pl.benchmarking.decoding import Measurement, Vocoder, clock_of, run_sessions
from vita_audio_pl.benchmarking.decoding_settings import DecodingProtocol, settings_of
from vita_audio_pl.codecs.protocol import Codec, DecodeStream
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.answering import clips_of, encode_recordings, prompt_ids, read_recordings
from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.loading import LoadedModel
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.inference.sequence import Options
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.text.conversation import Conversation
from vita_audio_pl.text.lines import read_lines


@dataclass(frozen=True)
class Question:
    """A prompt, how long reading its audio took, and the features that a model with an encoder hears."""

    ids: list[int]
    encode_seconds: float
    clips: tuple[Tensor, ...] = ()


def read_questions(path: Path, limit: int, loaded: LoadedModel, codec: Codec | None) -> list[Question]:
    """The first `limit` samples of a JSONL file without their last answer; audio paths start at the file or its parent.

    Raises:
        UserError: the file is missing or empty, a line is no sample, or its audio cannot be read.
    """
    clock = clock_of(torch.device("cpu"))
    questions = []
    for line in islice(read_lines(path), limit):
        where = f"{path}:{line.number}"
        if line.problem:
            raise UserError(f"{where}: {line.problem}")
        sample = Conversation.from_json(line.text, where)
        messages = sample.messages[:-1] if sample.messages[-1].role == "assistant" else sample.messages
        n_audios = sum(message.n_audios for message in messages)
        asked = Conversation(sample.id, messages, tuple(str(_found(audio, path)) for audio in sample.audios[:n_audios]))
        try:
            waves = read_recordings(asked, loaded, codec)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        begun = clock()
        audios = encode_recordings(asked, waves, loaded, codec)
        seconds = clock() - begun if waves else 0.0
        questions.append(Question(prompt_ids(asked, audios, loaded, codec), seconds, tuple(clips_of(audios))))
    if not questions:
        raise UserError(f"the samples {path} are empty; give a JSONL file with one conversation a line")
    return questions


def benchmark_trained(
    loaded: LoadedModel,
    codec: Codec | None,
    questions: list[Question],
    protocol: DecodingProtocol,
    *,
    quantised: Mapping[str, LoadedModel] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[list[Measurement], dict[str, Any]]:
    """Measures every setting of the protocol on the questions, as many at a time as the setting has sessions; and the kernels' choices.

    quantised: the model in each of the schemes of `protocol.quantize`.
    """
    held: dict[str | None, LoadedModel] = {None: loaded}
    held.update(quantised or {})
    vocabulary = loaded.vocabulary
    kinds: list[tuple[str, str | None]] = [(name, None) for name in protocol.kernels]
    kinds += [("auto", scheme) for scheme in protocol.quantize]
    runtimes = {
        (name, scheme): Runtime(held[scheme].model, kernels=name, compile=protocol.compile)
        for name, scheme in dict.fromkeys(kinds)
    }
    runtime = runtimes[kinds[0]]
    markers = SpanConstraint.of(vocabulary)
    measured = {setting: Measurement(setting) for setting in settings_of(protocol, runtime.n_heads, trained=True)}
    capacity = max(len(question.ids) for question in questions) + protocol.new_tokens
    clock = clock_of(runtime.device)
    decoders = {
        (kind, n): Decoder(made, slots=n, capacity=capacity, graphs=protocol.graphs, clock=clock)
        for kind, made in runtimes.items()
        for n in protocol.sessions
    }
    for repetition in range(-1, protocol.repetitions):
        for setting, kept in measured.items():
            progress(f"{setting.label}: {'warm-up' if repetition < 0 else f'repetition {repetition + 1}'}")
            total = Measurement(setting)
            asked = questions[: setting.sessions] if repetition < 0 else questions
            options = Options(
                DecodePattern.of(setting.mode),
                protocol.new_tokens,
                frozenset([vocabulary.im_end]),
                constraint=markers if setting.constrained else None,
                **loaded.verification(setting.verify, None),
            )
            for start in range(0, len(asked), setting.sessions):
                batch = asked[start : start + setting.sessions]
                run_sessions(
                    decoders[(setting.kernels, setting.quantize), setting.sessions],
                    [question.ids for question in batch],
                    options,
                    markers,
                    total,
                    sounds=None if codec is None else _vocoder(codec),
                    encode_seconds=sum(question.encode_seconds for question in batch),
                    clips=[question.clips for question in batch],
                )
            if repetition >= 0:
                _add(kept, total)
    return list(measured.values()), {scheme or name: made.kernels.record() for (name, scheme), made in runtimes.items()}


def _add(kept: Measurement, total: Measurement) -> None:
    """Adds a repetition whose batches count as one."""
    kept.tokens.append(sum(total.tokens))
    kept.seconds.append(sum(total.seconds))
    kept.audio_seconds.append(sum(total.audio_seconds))
    kept.first_chunk += total.first_chunk
    kept.between_chunks += total.between_chunks
    kept.first_audible += total.first_audible
    kept.passes_to_audible += total.passes_to_audible
    kept.gaps += total.gaps
    kept.chunk_factors += total.chunk_factors
    for kind, seconds in total.parts.items():
        kept.parts[kind] += seconds
    kept.written += total.written
    kept.backbone_passes += total.backbone_passes
    kept.head_passes += total.head_passes
    kept.drafted, kept.accepted = (
        [a + b for a, b in zip(old or [0] * len(new), new, strict=True)]
        for old, new in ((kept.drafted, total.drafted), (kept.accepted, total.accepted))
    )
    kept.cache_bytes = max(kept.cache_bytes, total.cache_bytes)


def _vocoder(codec: Codec) -> Vocoder:
    streams: defaultdict[int, DecodeStream] = defaultdict(codec.decode_stream)
    return Vocoder(lambda session, codes: streams[session].push(codes), codec.sample_rate)


def _found(audio: str, samples: Path) -> Path:
    """An audio path of a sample: as given, beside the file, or one folder up, where prepared worlds keep it."""
    places = [Path(audio), samples.parent / audio, samples.parent.parent / audio]
    return next((place for place in places if place.exists()), places[0])
