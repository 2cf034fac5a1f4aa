"""A streamed answer: pieces of text, codes and audio, in the order in which they can be shown and played."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vita_audio_pl.codecs.protocol import Codec, SoundSource
from vita_audio_pl.inference.generation import Generation
from vita_audio_pl.inference.session import Session
from vita_audio_pl.text.tokenizer import TextTokenizer
from vita_audio_pl.text.vocabulary import Vocabulary

CODES_PER_CHUNK = 16
"""Codes after which audio is made even if the span continues."""


@dataclass(frozen=True)
class TextPiece:
    """The next piece of text, whole characters only. writers: of its tokens, 0 the backbone, k + 1 head k."""

    text: str
    writers: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class NewCodes:
    """Audio codes, `(n,)` int32, and the writer of each (0 the backbone, k + 1 head k)."""

    codes: NDArray[np.int32]
    writers: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class AudioChunk:
    """The next piece of audio: `(samples,)` float32 at `sample_rate` Hz."""

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

    Audio is yielded when a span of codes ends (in Boost and Turbo after the first backbone pass), and within a long
    span after every `codes_per_chunk` codes. The chunks joined equal the codec's streamed decoding of all codes.

    Args:
        codec: decodes the codes; without one there are no `AudioChunk` events.
        codes_per_chunk: most codes that wait for the end of their span.
    """
    maker = EventMaker(tokenizer, vocabulary, codec, codes_per_chunk=codes_per_chunk)
    for tokens in session:
        yield from maker.push(tokens, session.result().writers[maker.taken : maker.taken + len(tokens)])
    yield from maker.finish()
    yield End(session.result())


class EventMaker:
    """Converts tokens to events incrementally; see `stream`.

    Attributes:
        taken: number of tokens so far.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        vocabulary: Vocabulary,
        codec: SoundSource | None = None,
        *,
        codes_per_chunk: int = CODES_PER_CHUNK,
    ):
        self.taken = 0
        self._vocabulary, self._codec, self._codes_per_chunk = vocabulary, codec, codes_per_chunk
        self._text = _TextPieces(tokenizer)
        self._sound = None if codec is None else codec.decode_stream()
        self._waiting: list[int] = []
        self._inside = False

    def completes(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens end a span of codes, or are for somebody who only reads."""
        return self._sound is None or self._vocabulary.end_of_audio in tokens

    def push(self, tokens: Sequence[int], writers: Sequence[int]) -> Iterator[Event]:
        """Add tokens and their writers; yields what can be shown and played, text first as audio takes time."""
        self.taken += len(tokens)
        vocabulary, wrote, pieces = self._vocabulary, [], []
        codes: list[int] = []
        ended = False  # whether a span ended whose codes wait, even if another has begun since
        for token, writer in zip(tokens, writers, strict=True):
            if token in (vocabulary.begin_of_audio, vocabulary.end_of_audio):
                self._inside = token == vocabulary.begin_of_audio
                ended = ended or (not self._inside and bool(self._waiting or codes))
            elif self._inside and vocabulary.first_code <= token < vocabulary.used:
                codes.append(token - vocabulary.first_code)
                wrote.append(writer)
            elif not self._inside and (piece := self._text.push(token, writer)):
                pieces.append(piece)
        if pieces:
            yield TextPiece("".join(p.text for p in pieces), tuple(w for p in pieces for w in p.writers))
        if codes:
            yield NewCodes(np.asarray(codes, np.int32), tuple(wrote))
            self._waiting += codes
        if self._waiting and (ended or len(self._waiting) >= self._codes_per_chunk):
            yield from self._make_sound()

    def finish(self) -> Iterator[Event]:
        """Events for what was held back."""
        if piece := self._text.finish():
            yield piece
        yield from self._make_sound(last=True)

    def _make_sound(self, last: bool = False) -> Iterator[Event]:
        codes = np.asarray(self._waiting, np.int32)
        self._waiting.clear()
        if self._sound is None or self._codec is None:
            return
        waves = [self._sound.push(codes)] if codes.size else []
        wave = np.concatenate([*waves, self._sound.finish()]) if last else waves[0]
        if wave.size:
            yield AudioChunk(wave, self._codec.sample_rate)


class _TextPieces:
    """Decodes text token by token; a character whose bytes are incomplete waits for the rest."""

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        self._pending: list[int] = []
        self._writers: list[int] = []

    def push(self, token: int, writer: int) -> TextPiece | None:
        self._pending.append(token)
        self._writers.append(writer)
        text = self._tokenizer.decode(self._pending)
        return None if text.endswith("\ufffd") else self._taken(text)

    def finish(self) -> TextPiece | None:
        return self._taken(self._tokenizer.decode(self._pending))

    def _taken(self, text: str) -> TextPiece | None:
        writers = tuple(self._writers)
        self._pending.clear()
        self._writers.clear()
        return TextPiece(text, writers) if text else None
