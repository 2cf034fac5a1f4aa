"""An answer as it is written: pieces of text, codes and sound, in the order in which they can be shown and played."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vita_audio_pl.codecs.protocol import Codec
from vita_audio_pl.inference.generation import Generation
from vita_audio_pl.inference.session import Session
from vita_audio_pl.text.tokenizer import TextTokenizer
from vita_audio_pl.text.vocabulary import Vocabulary

CODES_PER_CHUNK = 16
"""Codes after which sound is made even though the span goes on."""


@dataclass(frozen=True)
class TextPiece:
    """Text that follows what came before; never part of a character."""

    text: str


@dataclass(frozen=True, eq=False)
class NewCodes:
    """Audio codes, `(n,)` int32."""

    codes: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class AudioChunk:
    """Sound that follows what came before: `(samples,)` float32 at `sample_rate` Hz."""

    wave: NDArray[np.float32]
    sample_rate: int


@dataclass(frozen=True)
class End:
    """The answer is complete."""

    generation: Generation


Event: TypeAlias = TextPiece | NewCodes | AudioChunk | End


def stream(
    session: Session,
    tokenizer: TextTokenizer,
    vocabulary: Vocabulary,
    codec: Codec | None = None,
    *,
    codes_per_chunk: int = CODES_PER_CHUNK,
) -> Iterator[Event]:
    """Events of a session until `End`.

    Sound comes as soon as a span of codes ends (in Boost and Turbo after the first backbone pass), and within a long
    span after every `codes_per_chunk` codes. The chunks joined are the codec's streamed decoding of all codes.

    Args:
        codec: makes the sound; without one there are no `AudioChunk` events.
        codes_per_chunk: codes that wait at most for the end of their span.
    """
    text = _TextPieces(tokenizer)
    sound = None if codec is None else codec.decode_stream()
    waiting: list[int] = []
    inside = False
    for tokens in session:
        codes: list[int] = []
        for token in tokens:
            if token in (vocabulary.begin_of_audio, vocabulary.end_of_audio):
                inside = token == vocabulary.begin_of_audio
            elif inside and vocabulary.first_code <= token < vocabulary.used:
                codes.append(token - vocabulary.first_code)
            elif not inside and (piece := text.push(token)):
                yield TextPiece(piece)
        if codes:
            yield NewCodes(np.asarray(codes, np.int32))
            waiting += codes
        if sound is not None and codec is not None and waiting and (not inside or len(waiting) >= codes_per_chunk):
            wave = sound.push(np.asarray(waiting, np.int32))
            waiting.clear()
            if wave.size:
                yield AudioChunk(wave, codec.sample_rate)
    if piece := text.finish():
        yield TextPiece(piece)
    if sound is not None and codec is not None:
        rest = [sound.push(np.asarray(waiting, np.int32))] if waiting else []
        wave = np.concatenate([*rest, sound.finish()])
        if wave.size:
            yield AudioChunk(wave, codec.sample_rate)
    yield End(session.result())


class _TextPieces:
    """Text of tokens that arrive one by one; a character whose bytes are not complete waits for the rest."""

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        self._pending.append(token)
        text = self._tokenizer.decode(self._pending)
        if text.endswith("\ufffd"):
            return ""
        self._pending.clear()
        return text

    def finish(self) -> str:
        text = self._tokenizer.decode(self._pending)
        self._pending.clear()
        return text
