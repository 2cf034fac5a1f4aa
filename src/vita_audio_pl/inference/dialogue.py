"""A conversation with a model: its history, its answers, and caches that are reused from one answer to the next."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vita_audio_pl.codecs.protocol import Codec
from vita_audio_pl.config.decoding import WHEN_FULL
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.generation import Generation
from vita_audio_pl.inference.loading import ModelDescription
from vita_audio_pl.inference.sequence import DecodedSequence, Options
from vita_audio_pl.interleave import IntervalRatio
from vita_audio_pl.text.messages import ROLES, plain_text_of
from vita_audio_pl.text.rendering import Renderer, RenderOptions
from vita_audio_pl.text.tokenizer import TextTokenizer
from vita_audio_pl.text.turns import AudioCodes, AudioFrames, Segment, TextIds, Turn
from vita_audio_pl.text.vocabulary import Vocabulary

TurnContent: TypeAlias = str | NDArray[np.integer] | AudioFrames
"""A piece of a turn: text, codes `(n,)`, or features for a model that takes audio through an encoder."""
FREE_AFTER_SLIDING = 4
"""Sliding frees at least this part of the cache (a quarter), so that the history is seldom read again."""


@dataclass(frozen=True, eq=False)
class Item:
    """One turn of a conversation's history.

    Attributes:
        turn: as in training data; the codes of an answer include their lead-in.
        written: the tokens of an answer as the model wrote them; None for turns that were given.
        writers: which predictor wrote each (0 the backbone, k + 1 head k).
    """

    turn: Turn
    written: tuple[int, ...] | None = None
    writers: tuple[int, ...] = ()

    @cached_property
    def clips(self) -> tuple[Tensor, ...]:
        """Encoder features in the turn."""
        frames = (segment.features for segment in self.turn.segments if isinstance(segment, AudioFrames))
        return tuple(torch.from_numpy(features) for features in frames)


@dataclass(frozen=True)
class ChatFormat:
    """The format of answers in a model's training data.

    Attributes:
        vocabulary, tokenizer: the model's.
        ratio: interval ratio of spoken answers; None leaves them unchanged.
        lead_in: codes before an answer's audio.
    """

    vocabulary: Vocabulary
    tokenizer: TextTokenizer
    ratio: IntervalRatio | None
    lead_in: tuple[int, ...] = ()

    @classmethod
    def of(cls, loaded: ModelDescription, codec: Codec | None) -> "ChatFormat":
        """The format of a loaded model; codec: its codec, None for a model without speech."""
        rendering = loaded.rendering(codec) if codec is not None else RenderOptions(loaded.ratio)
        return cls(loaded.vocabulary, loaded.tokenizer, rendering.ratio, rendering.lead_in)

    @cached_property
    def renderer(self) -> Renderer:
        """Renders turns as in training; lead-ins are part of the turns already."""
        return Renderer(self.vocabulary, self.tokenizer, RenderOptions(self.ratio))

    def input_turn(self, role: str, *pieces: TurnContent) -> Item:
        """A turn that is given, not written by the model.

        Raises:
            UserError: an unknown role, no content, or an answer with more than one audio or with encoder frames.
        """
        if role not in ROLES:
            raise UserError(f"a turn has the role {role!r}; use one of {', '.join(ROLES)}")
        segments: list[Segment] = []
        for piece in pieces:
            if isinstance(piece, str):
                ids = self.tokenizer.encode(plain_text_of(piece, f"a turn of the {role}")) if piece else []
                segments += [TextIds(np.asarray(ids, np.int32))] if ids else []
            elif isinstance(piece, AudioFrames):
                segments.append(piece)
            else:
                codes = np.asarray(piece)
                self.vocabulary.code_ids(codes)
                if role == "assistant" and codes.size:
                    codes = np.concatenate([np.asarray(self.lead_in, codes.dtype), codes])
                segments.append(AudioCodes(codes))
        audios = [segment for segment in segments if not isinstance(segment, TextIds)]
        if role == "assistant" and (len(audios) > 1 or any(isinstance(audio, AudioFrames) for audio in audios)):
            raise UserError("an answer must hold at most one audio, as codes; join the audios or split the answer")
        if not segments:
            raise UserError(f"a turn of the {role} is empty; give it text or audio")
        return Item(Turn(role, tuple(segments)))

    def answer_turn(self, ids: Sequence[int], writers: Sequence[int] = ()) -> Item | None:
        """An answer as the model wrote it; None if it is empty."""
        generation = Generation(list(ids), list(writers), 0, 0, True)
        text, codes = generation.text_ids(self.vocabulary), generation.codes(self.vocabulary)
        segments: list[Segment] = [TextIds(np.asarray(text, np.int32))] if text else []
        segments += [AudioCodes(codes)] if codes.size else []
        return Item(Turn("assistant", tuple(segments)), tuple(ids), tuple(writers)) if segments else None

    def cut(self, ids: Sequence[int], n_codes: int) -> int:
        """Number of an answer's tokens up to and including its first `n_codes` codes."""
        inside, left = False, n_codes
        for place, token in enumerate(ids):
            if token in (self.vocabulary.begin_of_audio, self.vocabulary.end_of_audio):
                inside = token == self.vocabulary.begin_of_audio
            elif inside and self.vocabulary.first_code <= token < self.vocabulary.used:
                if left <= 1:
                    return place + 1 if left == 1 else 0
                left -= 1
        return len(ids)


class History:
    """A history of turns, in the format of training data (interval ratio, lead-in, markers), whatever layout the model itself wrote.

    If an answer would not fit: `slide` drops the oldest exchanges (a user's turns and what follows them) until a
    quarter of the capacity is free or one exchange is left, and keeps system turns at the beginning. `refuse` raises
    an error, as does `slide` if a single exchange does not fit.

    Args:
        capacity: tokens that it and its answer may have.

    Attributes:
        items: the turns; may be edited freely between answers.
        left_out: number of turns dropped so far.

    Raises:
        UserError: an unknown way to treat a full history.
    """

    def __init__(self, chat_format: ChatFormat, capacity: int, when_full: str = "slide", items: Sequence[Item] = ()):
        if when_full not in WHEN_FULL:
            raise UserError(f"when_full={when_full!r} is unknown; use one of {', '.join(WHEN_FULL)}")
        self.chat_format, self.capacity, self.when_full = chat_format, capacity, when_full
        self.items = list(items)
        self.left_out = 0

    def add(self, role: str, *pieces: TurnContent) -> Item:
        """Add a turn that is given; see `ChatFormat.input_turn`."""
        item = self.chat_format.input_turn(role, *pieces)
        self.items.append(item)
        return item

    def prompt(self) -> list[int]:
        """Token ids of the prompt of the next answer."""
        ids: list[int] = self.chat_format.renderer.prompt([item.turn for item in self.items]).tolist()
        return ids

    @property
    def clips(self) -> list[Tensor]:
        """Encoder features in it."""
        return [clip for item in self.items for clip in item.clips]

    def fitting_prompt(self, max_new_tokens: int) -> list[int]:
        """The prompt, after dropping what does not fit.

        Raises:
            UserError: there is nothing to answer, or it does not fit.
        """
        if not self.items:
            raise UserError("the conversation is empty; add a turn before it is answered")
        prompt = self.prompt()
        if len(prompt) + max_new_tokens <= self.capacity:
            return prompt
        if self.when_full == "slide":
            roles = [item.turn.role for item in self.items]
            first = next((n for n, role in enumerate(roles) if role != "system"), len(roles))
            starts = [n for n in range(first + 1, len(roles)) if roles[n] == "user" and roles[n - 1] != "user"]
            before = [0, *accumulate(self.chat_format.renderer.length([item.turn]) for item in self.items)]
            for start in starts:
                needed = len(prompt) - (before[start] - before[first]) + max_new_tokens
                enough = needed <= self.capacity - self.capacity // FREE_AFTER_SLIDING
                if enough or (start == starts[-1] and needed <= self.capacity):
                    self.left_out += start - first
                    self.items = self.items[:first] + self.items[start:]
                    return self.prompt()
        raise UserError(
            f"the conversation has {len(prompt)} tokens, and with an answer of up to {max_new_tokens} it does not fit "
            f"into the {self.capacity} of its cache; begin a new one, shorten the question or lower max_new_tokens"
        )

    def insert(self, place: int, answer: Generation, n_codes: int | None = None) -> Item | None:
        """Add an answer that the model wrote at this place; None if nothing is left of it.

        n_codes: codes that were played; text and codes after them were not heard and are dropped. None keeps all.
        """
        item = self.chat_format.answer_turn(answer.ids, answer.writers)
        if item is not None:
            self.items.insert(place, item)
        return item if item is None or n_codes is None else self.cut(item, n_codes)

    def cut(self, item: Item, n_codes: int) -> Item | None:
        """Truncate an answer to what was heard: its first `n_codes` codes, and the text before the last of them.

        Returns the shortened answer; an empty one is removed.

        Raises:
            UserError: it is no answer of this conversation that the model wrote.
        """
        if item not in self.items or item.written is None:
            raise UserError("only an answer that the model wrote in this conversation can be cut")
        length = self.chat_format.cut(item.written, max(n_codes, 0))
        place = self.items.index(item)
        left = self.chat_format.answer_turn(item.written[:length], item.writers[:length])
        self.items[place : place + 1] = [] if left is None else [left]
        return left


class Conversation(History):
    """A history and the model's answers; caches are kept between answers, so that only new tokens are read.

    The next answer is the one to a fresh prompt with the same history, token for token except for near ties. An
    unchanged beginning is not read again, unless another conversation took the slot meanwhile.

    Args:
        decoder: where it is answered; its capacity is the history's.
        when_full, items: see `History`.

    Attributes:
        answering: the answer in progress.
    """

    def __init__(self, decoder: Decoder, chat_format: ChatFormat, when_full: str = "slide", items: Sequence[Item] = ()):
        super().__init__(chat_format, decoder.cache.capacity, when_full, items)
        self.decoder = decoder
        self.answering: DecodedSequence | None = None
        self._kept: DecodedSequence | None = None
        self._place = 0  # of the answer in progress

    def begin(self, options: Options) -> DecodedSequence:
        """Start an answer; it is decoded with the decoder's other sequences until `end`.

        Raises:
            UserError: there is nothing to answer, it does not fit, an answer is in progress, or no slot is free.
        """
        if self.answering is not None:
            raise UserError("an answer is being written; end it before the next one begins")
        prompt = self.fitting_prompt(options.max_new_tokens)
        self.answering = self.decoder.open(prompt, options, self.clips, self._kept)
        self._kept, self._place = None, len(self.items)
        return self.answering

    def end(self, n_codes: int | None = None) -> Generation:
        """End the answer where it is and add it to the history; turns that were added meanwhile follow it.

        n_codes: see `insert`.

        Raises:
            UserError: the answer failed; the history is unchanged.
        """
        sequence, self.answering = self.answering, None
        if sequence is None:
            raise UserError("no answer is being written")
        result = ended(self.decoder, sequence)
        self._kept = sequence
        self.insert(self._place, result, n_codes)
        return result

    def answer(self, options: Options) -> Iterator[list[int]]:
        """New tokens of an answer, one list per round; leaving the loop ends the answer."""
        sequence = self.begin(options)
        taken = 0
        try:
            while True:
                self.decoder.step_for(sequence, taken)
                new = sequence.result().ids[taken:]
                if not new:
                    return
                taken += len(new)
                yield new
        finally:
            if self.answering is sequence:
                self.end()

    def fork(self) -> "Conversation":
        """A second conversation with the same history, and with a copy of the caches if a slot is empty.

        Raises:
            UserError: an answer is in progress.
        """
        if self.answering is not None:
            raise UserError("an answer is being written; end it before the conversation is forked")
        other = Conversation(self.decoder, self.chat_format, self.when_full, self.items)
        other.left_out = self.left_out
        other._kept = None if self._kept is None else self.decoder.copy(self._kept)
        return other

    def close(self) -> None:
        """Abort the answer in progress and free the caches."""
        for sequence in (self.answering, self._kept):
            if sequence is not None:
                self.decoder.close(sequence)
        self.answering = self._kept = None


def ended(decoder: Decoder, sequence: DecodedSequence) -> Generation:
    """Pause a sequence and return its answer, so that another may go on from its caches.

    Raises:
        UserError: it failed.
    """
    error = decoder.errors.get(sequence)
    decoder.pause(sequence)
    if error is not None:
        raise error
    return sequence.result()
